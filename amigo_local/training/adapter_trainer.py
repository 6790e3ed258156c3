"""TRL's SFTTrainer in steps of micro-batches, with a lean head on CPU."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from trl import SFTTrainer

from amigo_local.training.fused_lm_head import attach_fused_lm_head
from amigo_local.training.head import applies_to, completion_loss
from amigo_local.training.micro_batches import MicroBatch, StepRow, completion_tokens
from amigo_local.training.step_trainer import StepTrainer


class AdapterTrainer(StepTrainer, SFTTrainer):  # type: ignore[misc]  # trl ships no types
    """The loss is the mean of -log p over the step's completion tokens."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._lean_head = self.args.device.type == "cpu" and applies_to(self.model.get_base_model())
        if not self._lean_head:
            attach_fused_lm_head(self.model)  # in place of TRL's, whose entropy and accuracy nobody asks for

    def loss_terms(self, rows: Sequence[StepRow]) -> int:
        return completion_tokens(rows)

    def loss_sum(self, model: Any, micro_batch: MicroBatch) -> torch.Tensor:
        """With a plain head on CPU, loss and gradient of the head are made in one pass over whole logit rows.

        TRL's fused head scores every position there and keeps statistics on the side: measured 56 %
        of a step of SmolLM2-135M.
        """
        if not self._lean_head:
            return -self.token_logps(micro_batch).sum()
        causal_lm = model.get_base_model()
        output = causal_lm.base_model(
            input_ids=micro_batch.input_ids, position_ids=micro_batch.position_ids, use_cache=False
        )
        return completion_loss(output.last_hidden_state, causal_lm.get_output_embeddings().weight, micro_batch.labels)
