"""TRL's SFTTrainer in steps of micro-batches, with the tiled head."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from trl import SFTTrainer

from amigo_local.training.fused_lm_head import attach_fused_lm_head
from amigo_local.training.micro_batches import MicroBatch, StepRow, completion_tokens
from amigo_local.training.step_trainer import StepTrainer


class AdapterTrainer(StepTrainer, SFTTrainer):  # type: ignore[misc]  # trl ships no types
    """The loss is the mean of -log p over the step's completion tokens."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        attach_fused_lm_head(self.model)  # in place of TRL's, whose entropy and accuracy nobody asks for

    def loss_terms(self, rows: Sequence[StepRow]) -> int:
        return completion_tokens(rows)

    def loss_sum(self, model: Any, micro_batch: MicroBatch) -> torch.Tensor:
        return -self.token_logps(micro_batch).sum()
