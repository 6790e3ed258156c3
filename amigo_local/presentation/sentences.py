"""Events as sentences: the words are the same on a terminal, on a pipe and in a log."""

from __future__ import annotations

from amigo_local.domain.events import (
    AnyEvent,
    CheckpointSaved,
    GenerationFinished,
    MetricLogged,
    Note,
    Progress,
    Record,
    RunContinued,
    RunFinished,
    RunPaused,
    StageCancelled,
    StageFailed,
    StageFinished,
    StageSkipped,
    StageStarted,
)
from amigo_local.domain.units import format_seconds, format_size
from amigo_local.stages import load_stage

_METRICS = {
    "loss": "loss {:.4f}",
    "learning_rate": "lr {:.2e}",
    "grad_norm": "grad {:.2f}",
    "tokens_per_second": "{:.0f} tok/s",
}


def sentence(event: AnyEvent) -> str:
    """One or a few lines; empty for events that have none of their own."""
    match event:
        case StageStarted():
            about = f" (about {format_seconds(event.estimate_seconds)})" if event.estimate_seconds else ""
            return f"{event.summary}{about}"
        case StageSkipped():
            return f"already done: {event.artifact.path}"
        case StageFinished():
            size = f" → {event.artifact.path} ({format_size(event.artifact.size_bytes)})" if event.artifact else ""
            return (
                f"done in {format_seconds(event.elapsed_seconds)}, peak RAM {format_size(event.peak_rss_bytes)}{size}"
            )
        case StageFailed():
            return f"failed: {event.message}" + (f"\n  hint: {event.hint}" if event.hint else "")
        case StageCancelled():
            return "cancelled; what is done is kept, the same command goes on from there"
        case RunPaused():
            return "paused: it waits and keeps its memory, until it is resumed"
        case RunContinued():
            return "goes on"
        case RunFinished() if event.exit_code == 0:
            return f"finished in {format_seconds(event.elapsed_seconds)}"
        case Progress():
            return f"{event.label} {_amount(event)}"
        case MetricLogged():
            parts = [text.format(event.values[key]) for key, text in _METRICS.items() if key in event.values]
            return f"step {event.step}: {', '.join(parts)}" if parts else ""
        case CheckpointSaved():
            return f"checkpoint at step {event.step}"
        case Note():
            mark = {"warning": "warning: ", "problem": "problem: "}.get(event.level, "")
            return mark + event.text + (f"\n  fix: {event.fix}" if event.fix else "")
        case GenerationFinished():
            return (
                f"{event.model}: {event.answer_tokens} tokens, {event.tokens_per_second:.1f} tok/s, "
                f"prompt {event.prompt_tokens} tokens in {format_seconds(event.prompt_seconds)}, "
                f"load {format_seconds(event.load_seconds)}{_opening(event)}"
            )
        case _:
            return ""


def is_self_evident(record: Record) -> bool:
    """Begin and end of what shows itself: a conversation, or a verb that answers at once."""
    if record.stage == "chat":
        return isinstance(record.event, StageStarted | StageFinished)
    return isinstance(record.event, StageFinished) and load_stage(record.stage).place == "here"


def _opening(event: GenerationFinished) -> str:
    """How the answer began, as far as it is known."""
    told = []
    if event.first_token_seconds is not None:
        told.append(f"first token after {format_seconds(event.first_token_seconds)}")
    if event.tokens_before_code is not None:
        count = event.tokens_before_code
        told.append(f"{count} token{'s' if count != 1 else ''} before the code" if count else "code at once")
    return "".join(f", {text}" for text in told)


def _amount(event: Progress) -> str:
    def text(value: float) -> str:
        return format_size(value) if event.unit == "bytes" else f"{value:,.0f}"

    unit = "" if event.unit == "bytes" else f" {event.unit}"
    if event.total is None:
        return f"{text(event.done)}{unit}"
    share = f" ({100 * event.done / event.total:.0f} %)" if event.total else ""
    return f"{text(event.done)} of {text(event.total)}{unit}{share}"
