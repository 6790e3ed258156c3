"""What is to be said about a training while it goes on and afterwards: where it is, and its figures."""

from __future__ import annotations

from dataclasses import dataclass

from amigo_local.domain.pipeline import PipelineStatus
from amigo_local.domain.run_state import RunState, StageState
from amigo_local.domain.units import format_seconds, format_size

_PREFERRED = "rewards/accuracies"
"""TRL's name for the share of pairs whose better answer the model prefers."""


@dataclass(frozen=True)
class Standing:
    """Where a training is."""

    status: PipelineStatus
    text: str
    """`180 of 601 steps`, or what it does besides training."""
    share: float | None
    """Of what the text tells, 0 to 1."""
    remaining: str
    """`9 h 07 min to go`, `took 3 min 05 s`; empty: it isn't known."""


def stage_status(stage: StageState, run: RunState, live: bool) -> PipelineStatus:
    """What seems to run in a run that doesn't go on was cut."""
    if stage.status != "running":
        return stage.status
    if not live:
        return "cancelled"
    return "paused" if run.paused else "running"


def standing(stage: StageState, run: RunState, live: bool) -> Standing:
    status, progress = stage_status(stage, run, live), stage.progress
    text, share = "", None
    if progress:
        of = f" of {progress.total:,.0f}" if progress.total else ""
        doing = "" if progress.unit == "steps" else f"{progress.label} "
        text = f"{doing}{progress.done:,.0f}{of} {progress.unit}"
        share = progress.done / progress.total if progress.total else None
    elif step := last_step(stage):
        text = f"step {step:,.0f}"
    if status == "done":
        share = 1.0
    return Standing(status, text, share, _remaining(stage, status))


def _remaining(stage: StageState, status: PipelineStatus) -> str:
    left = stage.metrics["eta_seconds"].last if "eta_seconds" in stage.metrics else stage.estimate_seconds
    if status == "running" and left is not None:
        return f"{format_seconds(left)} to go"
    if status == "done" and stage.elapsed_seconds is not None:
        return f"took {format_seconds(stage.elapsed_seconds)}"
    return f"{format_seconds(left)} more when it goes on" if status == "paused" and left is not None else ""


def last_step(stage: StageState) -> float:
    """0 before the first one."""
    return max((series.steps[-1] for series in stage.metrics.values() if len(series)), default=0.0)


def training_facts(stage: StageState) -> list[tuple[str, str]]:
    """Label and text of all that is known, the most wanted first."""
    facts = [
        ("loss", _from_to(stage, "loss")),
        ("evaluation", _evaluation(stage)),
        ("preferred", _share(stage, _PREFERRED)),
        ("speed", _last(stage, "tokens_per_second", "{:,.0f} tok/s")),
        ("a step", format_seconds(seconds) if (seconds := _value(stage, "seconds_per_step")) is not None else ""),
        ("lr", _last(stage, "learning_rate", "{:.1e}")),
        ("VRAM", _memory(stage, "vram_bytes", "vram_peak_bytes", stage.peak_vram_bytes)),
        ("RAM", _memory(stage, "ram_bytes", "ram_peak_bytes", stage.peak_rss_bytes or None)),
        ("copies", _copies(stage)),
        ("checkpoints", checkpoint_steps(stage, most=4)),
    ]
    return [(label, text) for label, text in facts if text]


def checkpoint_steps(stage: StageState, most: int) -> str:
    """`… 50, 100, 150`: the newest ones; those before them may have made room already."""
    steps = list(dict.fromkeys(checkpoint.step for checkpoint in stage.checkpoints))
    told = ", ".join(f"{step:,}" for step in steps[-most:])
    return f"… {told}" if len(steps) > most else told


def _value(stage: StageState, name: str) -> float | None:
    return stage.metrics[name].last if name in stage.metrics else None


def _last(stage: StageState, name: str, form: str) -> str:
    value = _value(stage, name)
    return "" if value is None else form.format(value)


def _from_to(stage: StageState, name: str) -> str:
    series = stage.metrics.get(name)
    if not series or not len(series):
        return ""
    first, last = series.values[0], series.values[-1]
    return f"{last:.3f}" if len(series) == 1 else f"{first:.3f} → {last:.3f}"


def _evaluation(stage: StageState) -> str:
    series = stage.metrics.get("eval_loss")
    if not series or not len(series):
        return ""
    best = min(series.values)
    at = series.steps[series.values.index(best)]
    lowest = "" if best == series.values[-1] else f", lowest {best:.3f} at {at:,.0f}"
    return f"{series.values[-1]:.3f}{lowest}"


def _share(stage: StageState, name: str) -> str:
    told, held_out = _value(stage, name), _value(stage, f"eval_{name}")
    parts = [f"{100 * told:.0f} %"] if told is not None else []
    return ", held out ".join(parts + ([f"{100 * held_out:.0f} %"] if held_out is not None else []))


def _memory(stage: StageState, now: str, peak: str, measured: int | None) -> str:
    used, most = _value(stage, now), _value(stage, peak) or measured
    if used is None:
        return f"peak {format_size(most)}" if most else ""
    return format_size(used) + (f", peak {format_size(most)}" if most else "")


def _copies(stage: StageState) -> str:
    """Of a model whose layers are streamed to the card."""
    rate, hidden = _value(stage, "pcie_bytes_per_second"), _value(stage, "copies_hidden")
    if rate is None:
        return ""
    return f"{format_size(rate)}/s" + (f", {100 * hidden:.0f} % hidden" if hidden is not None else "")
