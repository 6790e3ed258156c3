"""A trainer that measures held-out rows and can be left at any time; its checkpoints hold the adapter alone."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
from transformers import Trainer

from amigo_local.domain.errors import Cancelled
from amigo_local.domain.events import AnyEvent, Emit
from amigo_local.domain.memory_plan import MemoryPlan
from amigo_local.domain.recipe import TrainSettings
from amigo_local.training.adapter import load_adapter, save_adapter
from amigo_local.training.checkpoints import CheckpointFolder
from amigo_local.training.frozen_base import Streamer
from amigo_local.training.micro_batches import StepRow, padded
from amigo_local.training.random_state import RandomState
from amigo_local.training.row_file import RowFile

PLAN = "plan.json"


class PlanInForce(msgspec.Struct, frozen=True, kw_only=True):
    """plan.json of a checkpoint."""

    capacity_tokens: int
    plan: MemoryPlan


class StepSetup(msgspec.Struct, frozen=True, kw_only=True):
    """Everything that a trainer needs besides TRL's own arguments."""

    rows: RowFile
    """What is trained on, read as it is needed."""
    held_out: Sequence[StepRow] = ()
    """What the loss is measured on every `evaluate_every_steps`, and after the last step."""
    settings: TrainSettings
    plan: MemoryPlan
    checkpoints: CheckpointFolder
    base_name: str
    emit: Emit
    streamer: Streamer | None = None


class CheckpointedTrainer(Trainer, ABC):  # type: ignore[misc]  # transformers ships no types
    """Overrides hooks of transformers 5.23's Trainer (pinned); TRL's trainer comes between them in the MRO."""

    control: Any  # Trainer's, and assigned below

    def __init__(self, *args: Any, setup: StepSetup, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.setup = setup
        self.capacity_tokens = setup.plan.batching.micro_batch * padded(setup.plan.max_length_tokens)
        """The footprint that a micro-batch may have: the plan's, halved whenever memory runs out."""
        self.remember_random_state()

    @abstractmethod
    def held_out_loss(self) -> float:
        """The mean loss on the held-out rows, with the model in eval mode and without gradients."""

    def _send_telemetry(self) -> None:
        """TRL reports every trainer it builds; this one is the user's business."""

    # -- Held-out samples

    @property
    def best(self) -> tuple[int, float] | None:
        """(step, loss) of the lowest evaluation so far, the first of equals."""
        found = [(line["eval_loss"], line["step"]) for line in self.state.log_history if "eval_loss" in line]
        loss, step = min((pair for pair in found if math.isfinite(pair[0])), default=(0.0, None))
        return None if step is None else (step, loss)

    def _evaluation_is_due(self) -> bool:
        every, step = self.setup.settings.evaluate_every_steps, self.state.global_step
        if every is None or step == 0 or (step % every and step != self.state.max_steps):
            return False
        return not any("eval_loss" in line and line["step"] == step for line in self.state.log_history)

    def _init_training_state(self, *args: Any, **kwargs: Any) -> Any:
        found = super()._init_training_state(*args, **kwargs)
        # A run that was cut between a step and its evaluation: the checkpoint knows the one and not the other.
        self.args.eval_on_start = self._evaluation_is_due()
        return found

    def _maybe_log_save_evaluate(self, *args: Any, **kwargs: Any) -> None:
        self.control.should_evaluate = self._evaluation_is_due()
        super()._maybe_log_save_evaluate(*args, **kwargs)

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """Called by Trainer when an evaluation is due; changes nothing that training goes on from."""
        random = RandomState()
        self.model.eval()
        metrics = {"eval_loss": self.held_out_loss()}
        best = self.best
        self.log(metrics)  # in eval mode, so that TRL adds eval's metrics
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        if self.setup.settings.keep_best and self.best != best:
            self.control.should_save = True
        self.model.train()
        random.restore()
        return metrics

    # -- Checkpoints

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        def fill(folder: Path) -> None:
            save_adapter(self.model, folder, self.setup.base_name)
            self._save_optimizer_and_scheduler(str(folder))
            self._save_rng_state(str(folder))
            in_force = PlanInForce(capacity_tokens=self.capacity_tokens, plan=self.setup.plan)
            (folder / PLAN).write_bytes(msgspec.json.format(msgspec.json.encode(in_force)))
            # Holds global_step, which is the sampler's position, and the log so far.
            self.state.save_to_json(str(folder / "trainer_state.json"))

        best = self.best if self.setup.settings.keep_best else None
        self.setup.checkpoints.write(
            self.state.global_step, fill, nbytes=self._checkpoint_bytes(), also_keep=best[0] if best else None
        )

    def _checkpoint_bytes(self) -> int:
        trained = [p for p in self.model.parameters() if p.requires_grad]
        moments = [v for state in self.optimizer.state.values() for v in state.values() if hasattr(v, "nbytes")]
        return sum(tensor.nbytes for tensor in [*trained, *moments])

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        folder = Path(resume_from_checkpoint)
        load_adapter(self.model, folder)
        # The capacity that the steps so far ended with; whatever else a plan says changes no number.
        self.capacity_tokens = msgspec.json.decode((folder / PLAN).read_bytes(), type=PlanInForce).capacity_tokens

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is not None:
            page_out(getattr(self.optimizer, "optimizer", self.optimizer))  # accelerate's wrapper has one inside

    def remember_random_state(self) -> None:
        """Call when a step ends or begins: what a checkpoint of the last finished step is to hold."""
        self._random_at_step_end = RandomState()

    def save_before_leaving(self, mid_step: bool) -> None:
        """A checkpoint of the last finished step, unless there is one already.

        In the middle of a step the adapter and the optimizer are still as that step left them; only
        dropout may have drawn random numbers since, so the generators are put back.
        """
        step = self.state.global_step
        if step == 0 or self.setup.checkpoints.at(step).exists():
            return
        if mid_step:
            self._random_at_step_end.restore()
        self._save_checkpoint(self.model, None)

    def tell(self, event: AnyEvent) -> None:
        """For what is told in the middle of a step; cancelling then loses that step alone."""
        try:
            self.setup.emit(event)
        except Cancelled:
            self.save_before_leaving(mid_step=True)
            raise


def page_out(optimizer: Any) -> None:
    """Puts moments that were loaded back where a paged optimizer of bitsandbytes makes them: its load_state_dict leaves
    them on the card (Optimizer8bit.load_state_dict and get_state_buffer), where no plan has room for them."""
    if not getattr(optimizer, "is_paged", False):
        return
    for parameter, state in optimizer.state.items():
        for name in ("state1", "state2"):
            if name in state:
                buffer = optimizer.get_state_buffer(parameter, dtype=state[name].dtype)
                state[name] = buffer.copy_(state[name])
