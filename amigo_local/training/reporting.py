"""What the trainer tells: its log lines, progress and checkpoints as events, and cancelling."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Protocol

from transformers import TrainerCallback

from amigo_local.domain.errors import AmigoError, Cancelled
from amigo_local.domain.events import AnyEvent, CheckpointSaved, Emit, MetricLogged, Note, Progress
from amigo_local.training.pace import Pace

SECONDS_BETWEEN_PROGRESS = 1.0
"""Within a step, so that a long one still shows life and can be cancelled."""

# What a second run repeats exactly, of all that a trainer logs: no clock in it, and no count that starts anew when a
# run resumes (TRL's num_tokens does). transformers prefixes an evaluation's values with eval_.
_REPEATABLE = ("loss", "learning_rate", "grad_norm", "rewards/", "logps/")
_NOT_TOLD = frozenset({"epoch", "num_tokens", "eval_num_tokens", "total_flos"})


class Readings(Protocol):
    def read(self) -> dict[str, float]:
        """Values by metric name, as of now or since the last reading."""


class EventReporter(TrainerCallback):  # type: ignore[misc]  # transformers ships no types
    """Everything is emitted after a step has been logged, where a checkpoint is exact.

    When `emit` raises Cancelled, `save_now(mid_step)` is called first: at most the current step is lost. Trackers'
    callbacks come after this one: it completes the log lines that they pass on.
    """

    def __init__(
        self,
        emit: Emit,
        tokens_by_step: list[int],
        samples_by_step: list[int],
        log_every_steps: int,
        after_step: Callable[[], None],
        save_now: Callable[[bool], None],
        checkpoint_path: Callable[[int], str],
        gauges: Readings,
        clock: Callable[[], float],
        stop_asked: Callable[[], bool] = lambda: False,
    ) -> None:
        """`tokens_by_step[k]`: tokens in all trained on after k steps (padding not counted); samples_by_step alike.

        after_step: called when a step has ended, before anything is told or evaluated; where it remembers the random
        state, cancelling within an evaluation saves the step before it as it was. stop_asked: once it says so, the
        step at hand is finished and saved, and Cancelled is raised; after the last step it is too late for that.
        """
        self._emit_event, self._tokens, self._log_every = emit, tokens_by_step, log_every_steps
        self._samples, self._gauges = samples_by_step, gauges
        self._after_step, self._save_now = after_step, save_now
        self._checkpoint_path, self._clock, self._stop_asked = checkpoint_path, clock, stop_asked
        self._step_started = self._last_progress = clock()
        self._evaluated = 0
        self._pace = Pace()
        self.seconds_training = 0.0
        self.tokens_trained = 0

    def _emit(self, event: AnyEvent, mid_step: bool = False) -> None:
        try:
            self._emit_event(event)
        except Cancelled:
            self._save_now(mid_step)
            raise

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._step_started = self._clock()
        self._progress(state, state.global_step)

    def micro_batch_done(self, state: Any, done: int, total: int) -> None:
        """A trainer whose step loops over micro-batches calls this after each but the last."""
        if self._clock() - self._last_progress >= SECONDS_BETWEEN_PROGRESS:
            self._progress(state, state.global_step + done / total, mid_step=True)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._after_step()
        if self._is_to_stop(state):
            control.should_save = True

    def _is_to_stop(self, state: Any) -> bool:
        return self._stop_asked() and state.global_step < state.max_steps

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float], **kwargs: Any) -> None:
        if "loss" in logs:
            self._trained(state, logs)
        elif "eval_loss" in logs:
            state.log_history[-1] = {"step": state.global_step, **_repeatable(logs)}
            self._emit(MetricLogged(step=state.global_step, values=self._told(state, logs)))
        # Else it is the summary line at the end.

    def _trained(self, state: Any, logs: dict[str, float]) -> None:
        step, now = state.global_step, self._clock()
        seconds, self._step_started = now - self._step_started, now
        tokens = self._tokens[step] - self._tokens[step - 1]
        self.seconds_training += seconds
        self.tokens_trained += tokens
        self._pace.step(seconds)
        # The history is saved in every checkpoint.
        state.log_history[-1] = {"step": step, **_repeatable(logs), "tokens": self._tokens[step]}
        if not math.isfinite(logs["loss"]):
            # The last resort: a step trainer that looks before the optimizer steps has stopped already.
            raise AmigoError(
                f"the loss became {'NaN' if math.isnan(logs['loss']) else 'infinite'} at step {step}",
                "lower train.learning_rate, or train.max_grad_norm; then run again",
            )
        if step % self._log_every == 0 or step == state.max_steps:
            logs["seconds_per_step"] = seconds
            logs["eta_seconds"] = self._pace.seconds_for(state.max_steps - step)
            logs["tokens_per_second"] = tokens / seconds if seconds > 0 else 0.0
            samples = self._samples[step] - self._samples[step - 1]
            logs["samples_per_second"] = samples / seconds if seconds > 0 else 0.0
            logs.update(self._gauges.read())
            self._emit(MetricLogged(step=step, values=self._told(state, logs)))
        self._progress(state, step)

    def _told(self, state: Any, logs: dict[str, float]) -> dict[str, float]:
        """What goes into a record: JSON has no word for a number that isn't finite."""
        numbers = {name: float(value) for name, value in logs.items() if name not in _NOT_TOLD and _is_number(value)}
        odd = [name for name, value in numbers.items() if not math.isfinite(value)]
        if odd:
            text = f"step {state.global_step}: {', '.join(odd)} no finite number, left out of the record"
            self._emit(Note(text, "warning"))
        return {name: value for name, value in numbers.items() if name not in odd}

    def on_prediction_step(
        self, args: Any, state: Any, control: Any, eval_dataloader: Any = None, **kwargs: Any
    ) -> None:
        self._evaluated += 1
        if self._clock() - self._last_progress >= SECONDS_BETWEEN_PROGRESS:
            self._last_progress = self._clock()
            total = None if eval_dataloader is None else len(eval_dataloader)
            # mid_step: evaluating may have drawn random numbers since the step's end.
            self._emit(Progress(label="evaluating", done=self._evaluated, total=total, unit="batches"), mid_step=True)

    def on_evaluate(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._evaluated = 0
        self._pause_ended()
        if self._is_to_stop(state):
            control.should_save = True

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        step = state.global_step
        self._emit(CheckpointSaved(step=step, path=self._checkpoint_path(step)))
        if self._is_to_stop(state):
            raise Cancelled
        self._pause_ended()

    def _pause_ended(self) -> None:
        """An evaluation, or writing a checkpoint, is no part of the next step."""
        now = self._clock()
        self._pace.pause(now - self._step_started)
        self._step_started = now

    def _progress(self, state: Any, done: float, mid_step: bool = False) -> None:
        self._last_progress = self._clock()
        self._emit(Progress(label="training", done=done, total=state.max_steps, unit="steps"), mid_step)


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _repeatable(logs: dict[str, float]) -> dict[str, float]:
    return {name: float(v) for name, v in logs.items() if name.removeprefix("eval_").startswith(_REPEATABLE)}
