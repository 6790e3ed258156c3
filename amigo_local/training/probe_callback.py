"""The probe of a trainer that is about to start: its heaviest micro-batches, rehearsed with its own step."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from transformers import TrainerCallback

from amigo_local.training.micro_batches import StepRow, footprint
from amigo_local.training.probe import BuildAnew, PlanCorrector
from amigo_local.training.rehearsal import Measured, Meter, Rehearsal, rehearse, scratch_optimizer

AS_HEAVY_AS_CAN_BE = 0.98
"""Of the capacity: the search for the heaviest micro-batch, which reads rows from disk, ends there."""


class ProbeCallback(TrainerCallback):  # type: ignore[misc]  # transformers ships no types
    """Comes before EventReporter, whose clock starts after it.

    Where training begins everything is as it will be: recomputing is on, the model is wrapped for bf16, a resumed
    adapter is in its place. Raises BuildAnew out of `trainer.train()` when it is to be built anew.
    """

    def __init__(
        self,
        trainer: Any,
        corrector: PlanCorrector,
        meter: Meter,
        clock: Callable[[], float] = time.monotonic,
        *,
        only_probe: bool = False,
    ) -> None:
        """only_probe: raises BuildAnew when the plan is settled, too."""
        self._trainer, self._corrector, self._meter, self._clock = trainer, corrector, meter, clock
        self._only_probe = only_probe

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self._corrector.settled:
            return
        unchanged = self._corrector.judge(rehearse_trainer(self._trainer, self._meter, self._clock))
        if self._only_probe or not unchanged:
            raise BuildAnew


def rehearse_trainer(trainer: Any, meter: Meter, clock: Callable[[], float] = time.monotonic) -> Measured:
    """trainer: a StepTrainer within `train()`."""
    setup, model = trainer.setup, trainer.model
    heaviest = heaviest_micro_batch(trainer, setup.rows, trainer.train_dataset["index"])
    held_out = heaviest_micro_batch(trainer, setup.held_out, range(len(setup.held_out)))

    def run_step() -> None:
        trainer.accelerator.backward(trainer.rehearse_loss(model, heaviest) / trainer.loss_terms(heaviest))

    metrics = {mode: {name: list(values) for name, values in m.items()} for mode, m in trainer._metrics.items()}
    try:
        return rehearse(
            Rehearsal(
                model=model,
                tokens=footprint([row.lengths for row in heaviest], setup.settings.packing),
                run_step=run_step,
                evaluate=(lambda: trainer.rehearse_loss(model, held_out)) if held_out else None,
                make_optimizer=lambda parameters: scratch_optimizer(setup.plan.optimizer, parameters),
                streaming=setup.streamer,
                forget_pass=setup.streamer.reset if setup.streamer is not None else lambda: None,
            ),
            meter,
            clock,
        )
    finally:
        for mode, before in metrics.items():  # TRL averages whatever is here into its next log line
            trainer._metrics[mode].clear()
            trainer._metrics[mode].update(before)


def heaviest_micro_batch(trainer: Any, rows: Sequence[StepRow], order: Sequence[int]) -> list[StepRow]:
    """Of all steps over `rows` in that order; empty where there are none."""
    most, found = 0, []
    for group in _micro_batches(trainer, rows, order):
        weight = footprint([row.lengths for row in group], trainer.setup.settings.packing)
        if weight > most:
            most, found = weight, group
        if most >= AS_HEAVY_AS_CAN_BE * trainer.capacity_tokens:
            break
    return found


def _micro_batches(trainer: Any, rows: Sequence[StepRow], order: Sequence[int]) -> Iterator[list[StepRow]]:
    batch = trainer.args.per_device_train_batch_size
    for start in range(0, len(order), batch):
        yield from trainer.split([rows[index] for index in order[start : start + batch]])
