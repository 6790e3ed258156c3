"""TRL's SFTTrainer with an adapter-only checkpoint, no telemetry, and a lean head on CPU."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy
import torch
from trl import SFTTrainer

from amigo_local.training.adapter import load_adapter, save_adapter
from amigo_local.training.checkpoints import CheckpointFolder
from amigo_local.training.head import applies_to, completion_loss


class AdapterTrainer(SFTTrainer):  # type: ignore[misc]  # trl ships no types
    """Overrides four hooks of transformers 5.23's Trainer and TRL 1.16's SFTTrainer (both pinned)."""

    def __init__(self, *args: Any, checkpoints: CheckpointFolder, base_name: str, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._checkpoints, self._base_name = checkpoints, base_name
        self._random_at_step_end = RandomState()
        causal_lm = self.model.get_base_model()
        self._lean_head = self.args.device.type == "cpu" and applies_to(causal_lm)

    def _send_telemetry(self) -> None:
        """TRL reports every trainer it builds; this one is the user's business."""

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """On CPU the head scores completion tokens alone.

        TRL's fused head scores every position there and keeps statistics on the side: measured 56 %
        of a step of SmolLM2-135M. On CUDA its Triton kernel does it right.
        """
        if not self._lean_head or return_outputs:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        causal_lm = model.get_base_model()
        # No attention mask: padding is on the right, and causal attention never looks there.
        output = causal_lm.base_model(input_ids=inputs["input_ids"], use_cache=False)
        head = causal_lm.get_output_embeddings()
        return completion_loss(output.last_hidden_state, head.weight, inputs["labels"]) / num_items_in_batch

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        def fill(folder: Path) -> None:
            save_adapter(self.model, folder, self._base_name)
            self._save_optimizer_and_scheduler(str(folder))
            self._save_rng_state(str(folder))
            # Holds global_step, which is the sampler's position, and the log so far.
            self.state.save_to_json(str(folder / "trainer_state.json"))

        self._checkpoints.write(self.state.global_step, fill)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        load_adapter(self.model, Path(resume_from_checkpoint))

    def remember_random_state(self) -> None:
        self._random_at_step_end = RandomState()

    def save_before_leaving(self, mid_step: bool) -> None:
        """A checkpoint of the last finished step, unless there is one already.

        In the middle of a step the adapter and the optimizer are still as that step left them; only
        dropout may have drawn random numbers since, so the generators are put back.
        """
        step = self.state.global_step
        if step == 0 or self._checkpoints.at(step).exists():
            return
        if mid_step:
            self._random_at_step_end.restore()
        self._save_checkpoint(self.model, None)


class RandomState:
    """The generators that a training step may draw from, as they are now."""

    def __init__(self) -> None:
        self._python, self._numpy, self._torch = random.getstate(), numpy.random.get_state(), torch.get_rng_state()
        self._cuda = torch.cuda.get_rng_state() if torch.cuda.is_available() else None

    def restore(self) -> None:
        random.setstate(self._python)
        numpy.random.set_state(self._numpy)
        torch.set_rng_state(self._torch)
        if self._cuda is not None:
            torch.cuda.set_rng_state(self._cuda)
