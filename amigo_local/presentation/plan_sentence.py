"""A plan in sentences: whether it fits, how long it takes, what each lever buys, which change is nearest to fitting."""

from __future__ import annotations

import re

from amigo_local.domain.memory_plan import Lever, MemoryPlan
from amigo_local.domain.plan import Plan
from amigo_local.domain.units import format_seconds, format_size


def fit_sentence(plan: Plan) -> str:
    """`fits: streams 21 of 48 layers`, or why it doesn't."""
    if plan.binding:
        return f"doesn't fit: {plan.binding}"
    if plan.memory:
        return f"fits: {_where_layers_are(plan.memory)}"
    if any(stage.stage == "train" for stage in plan.stages):
        return "what it trains is made already"
    return "what it needs shows once the model is there"


def _where_layers_are(memory: MemoryPlan) -> str:
    layers = memory.resident_layers + memory.streamed_layers
    if memory.device == "cpu":
        return "trains on the processor"
    if memory.streamed_layers:
        return f"streams {memory.streamed_layers} of {layers} layers"
    return f"all {layers} layers stay on the card"


def time_sentence(plan: Plan) -> str:
    """How long what isn't done takes, as far as it is known; empty when all is done."""
    waiting = [stage for stage in plan.stages if stage.status == "to do"]
    known = sum(stage.needs.seconds for stage in waiting if stage.needs.seconds)
    unknown = list(dict.fromkeys(s.stage for s in waiting if s.needs.seconds is None and s.stage != "register"))
    if not known:
        return ""
    more = f", and what {' and '.join(unknown)} {'take' if len(unknown) > 1 else 'takes'}" if unknown else ""
    return f"about {format_seconds(known)}{more}"


def lever_sentence(lever: Lever) -> str:
    """`saves 1.1 GiB VRAM; costs 1.3 GiB RAM, 0.3 s a step`; empty where it makes no difference."""
    parts = [
        (lever.vram_saved_bytes, f"{format_size(abs(lever.vram_saved_bytes))} VRAM"),
        (lever.ram_saved_bytes, f"{format_size(abs(lever.ram_saved_bytes))} RAM"),
        (
            lever.seconds_saved if abs(lever.seconds_saved) >= 0.05 else 0,
            f"{format_seconds(abs(lever.seconds_saved))} a step",
        ),
    ]
    saved, spent = [text for value, text in parts if value > 0], [text for value, text in parts if value < 0]
    said = [f"saves {', '.join(saved)}" if saved else "", f"costs {', '.join(spent)}" if spent else ""]
    return "; ".join(text for text in said if text)


def suggested_overrides(hint: str) -> tuple[str, ...]:
    """The first change that a hint names, as --set takes it: maybe several settings; empty when it names none."""
    found = re.search(r"--set [\w.]+=[^\s;,)'\"]+(?: --set [\w.]+=[^\s;,)'\"]+)*", hint)
    return tuple(found[0].removeprefix("--set ").split(" --set ")) if found else ()
