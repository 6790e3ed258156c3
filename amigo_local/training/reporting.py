"""What the trainer tells: its log lines, progress and checkpoints as events, and cancelling."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from transformers import TrainerCallback

from amigo_local.domain.errors import AmigoError, Cancelled
from amigo_local.domain.events import AnyEvent, CheckpointSaved, Emit, MetricLogged, Progress

SECONDS_BETWEEN_PROGRESS = 1.0
"""Within a step, so that a long one still shows life and can be cancelled."""


class EventReporter(TrainerCallback):  # type: ignore[misc]  # transformers ships no types
    """Everything is emitted after a step has been logged, where a checkpoint is exact.

    When `emit` raises Cancelled, `save_now(mid_step)` is called first: at most the current step is lost.
    """

    def __init__(
        self,
        emit: Emit,
        tokens_by_step: list[int],
        log_every_steps: int,
        before_step: Callable[[], None],
        save_now: Callable[[bool], None],
        checkpoint_path: Callable[[int], str],
        clock: Callable[[], float],
    ) -> None:
        """`tokens_by_step[k]`: tokens in all trained on after k steps (padding not counted)."""
        self._emit_event, self._tokens, self._log_every = emit, tokens_by_step, log_every_steps
        self._before_step, self._save_now = before_step, save_now
        self._checkpoint_path, self._clock = checkpoint_path, clock
        self._step_started = self._last_progress = clock()
        self._micro_batches = 0
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

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._micro_batches = 0
        self._before_step()

    def on_substep_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._micro_batches += 1
        if self._clock() - self._last_progress >= SECONDS_BETWEEN_PROGRESS:
            done = state.global_step + self._micro_batches / args.gradient_accumulation_steps
            self._progress(state, done, mid_step=True)

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float], **kwargs: Any) -> None:
        if "loss" not in logs:
            return  # the summary line at the end
        step, now = state.global_step, self._clock()
        seconds, self._step_started = now - self._step_started, now
        tokens = self._tokens[step] - self._tokens[step - 1]
        self.seconds_training += seconds
        self.tokens_trained += tokens
        line: dict[str, float] = {
            name: float(logs[name]) for name in ("loss", "learning_rate", "grad_norm") if name in logs
        }
        # The history is saved in every checkpoint; it holds nothing that a second run would not repeat.
        state.log_history[-1] = {"step": step, **line, "tokens": self._tokens[step]}
        if line["loss"] != line["loss"]:
            raise AmigoError(
                f"the loss became NaN at step {step}",
                "lower train.learning_rate, or train.max_grad_norm; then run again",
            )
        if step % self._log_every == 0 or step == state.max_steps:
            line["tokens_per_second"] = tokens / seconds if seconds > 0 else 0.0
            line["seconds_per_step"] = seconds
            self._emit(MetricLogged(step=step, values=line))
        self._progress(state, step)

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        step = state.global_step
        self._emit(CheckpointSaved(step=step, path=self._checkpoint_path(step)))
        self._step_started = self._clock()  # writing it is no part of the next step

    def _progress(self, state: Any, done: float, mid_step: bool = False) -> None:
        self._last_progress = self._clock()
        self._emit(Progress(label="training", done=done, total=state.max_steps, unit="steps"), mid_step)
