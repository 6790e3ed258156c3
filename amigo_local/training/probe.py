"""The probe: before hours are spent, a rehearsal is held against the plan, and the plan corrected by it."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import msgspec

from amigo_local.domain.errors import InputError
from amigo_local.domain.events import Column, Emit, Note, Table
from amigo_local.domain.memory_plan import MemoryPlan, Part
from amigo_local.domain.units import format_seconds, format_size
from amigo_local.training.memory_formula import ASSUMED, DEFAULT_SLOTS, Calibration
from amigo_local.training.rehearsal import Measured

CPU_SECONDS_WORTH_A_PROBE = 600.0
"""On a processor a rehearsal, two full micro-batches and an evaluation, is a few percent of ten minutes; a shorter
run is over before a correction pays, and there a wrong plan swaps where a card fails."""
MOST_CORRECTIONS = 4
"""Each costs a rehearsal. A plan that is still too large then is not wrong by some percent."""
LEFT_FREE = 0.03
"""Of the budget, when layers are added: the allocator's fragments differ from step to step."""
SHORT_OF = 0.1
"""Of the budget: what a plan that ran out of memory is taken to be short of at least. torch says what the last request
was, not what would have come after it."""


Replan = Callable[[Calibration], MemoryPlan]
"""The planner with what was measured. Raises InputError, saying what binds, when nothing fits."""


class Probing(NamedTuple):
    """What a probe needs besides the training itself."""

    replan: Replan
    layer_bytes: int
    """Of a resident layer on the card; 0 where nothing streams."""
    vram_free_bytes: int | None = None
    """Of the card before this process used it, as the driver told; None: all of it."""


def is_worth_it(plan: MemoryPlan, steps: int) -> bool:
    """Always on a card, where a wrong plan ends in an error; on a processor for long runs."""
    return plan.device == "cuda" or (plan.step_seconds or 0.0) * steps > CPU_SECONDS_WORTH_A_PROBE


class BuildAnew(Exception):
    """Raised where training was to start: it has to be built anew, by the corrector's plan."""


class PlanCorrector:
    """Takes one measurement after another until `plan` is one that was seen to fit.

    Too much: fewer resident layers where there are enough of them, which is exact; else the planner chooses anew.
    Much less: as many more resident layers, to be measured once more, and taken back if that was too much.
    """

    def __init__(
        self, plan: MemoryPlan, layer_bytes: int, replan: Replan, emit: Emit, assumed: Calibration = ASSUMED
    ) -> None:
        """layer_bytes: of a resident layer on the card; 0 where nothing streams. assumed: what `plan` was made with."""
        self.plan = plan
        self.settled = False
        self._layer_bytes, self._replan, self._emit, self._assumed = layer_bytes, replan, emit, assumed
        self._fitting: MemoryPlan | None = None
        self._corrections = 0

    def judge(self, measured: Measured) -> bool:
        """Whether `plan` is to be trained with as it stands; else it has changed.

        Raises InputError when no correction is left.
        """
        self._emit(comparison(self.plan, measured))
        before = self.plan
        if measured.ran_out or measured.peak.needed > budget_bytes(self.plan):
            self._make_smaller(measured)
        elif (more := self._layers_to_add(measured)) > 0:
            self._fitting = self.plan
            self._change(_with_layers(self.plan, measured, more, self._layer_bytes), "there is room to spare")
        else:
            self.settled = True
        return self.plan is before

    def _make_smaller(self, measured: Measured) -> None:
        if self._fitting is not None:
            self.settled = True
            self._change(self._fitting, "that was too much after all")
            return
        self._corrections += 1
        budget = budget_bytes(self.plan)
        short = max(measured.peak.needed - budget, int(SHORT_OF * budget) if measured.ran_out else 1)
        fewer = -(-short // self._layer_bytes) if self._layer_bytes else 0
        if 0 < fewer <= self.plan.resident_layers:
            smaller = _with_layers(self.plan, measured, -fewer, self._layer_bytes)
        else:
            self._assumed = calibrated(self._assumed, self.plan, measured, budget + short)
            smaller = self._replan(self._assumed)
        what = "memory ran out" if measured.ran_out else f"{format_size(short)} over the budget"
        if self.plan.device == "cpu" and _levers(smaller) == _levers(self.plan):
            # No wall: pages of mapped files are given up first, and then it swaps.
            self.settled = True
            self._emit(Note(f"RAM: {what} of {format_size(budget)} in the probe", "warning", "close other programs"))
            return
        if self._corrections > MOST_CORRECTIONS or _levers(smaller) == _levers(self.plan):
            resource = "VRAM" if self.plan.device == "cuda" else "RAM"
            raise InputError(
                f"{resource} binds: {what} of {format_size(budget)} in the probe, with {measured.tokens} tokens at "
                f"once and {self.plan.resident_layers} resident layers",
                f"--set data.max_length_tokens={max(128, self.plan.max_length_tokens // 2)} needs less; or close what "
                f"else uses {resource}",
            )
        self._change(smaller, what)

    def _layers_to_add(self, measured: Measured) -> int:
        if not self._layer_bytes or self._corrections or self._fitting is not None:
            return 0
        room = int((1 - LEFT_FREE) * budget_bytes(self.plan)) - measured.peak.held
        return min(self.plan.streamed_layers, room // self._layer_bytes)

    def _change(self, plan: MemoryPlan, why: str) -> None:
        before, after = _levers(self.plan), _levers(plan)
        changes = [f"{name} {before[name]} → {after[name]}" for name in after if before[name] != after[name]]
        self.plan = plan
        self._emit(Note(f"plan corrected, {why}: {', '.join(changes)}"))


def budget_bytes(plan: MemoryPlan) -> int:
    return plan.vram_budget_bytes if plan.device == "cuda" else plan.ram_budget_bytes


def predicted_bytes(plan: MemoryPlan) -> int:
    return plan.peak_vram_bytes if plan.device == "cuda" else plan.peak_ram_bytes


def calibrated(assumed: Calibration, plan: MemoryPlan, measured: Measured, at_least_bytes: int = 0) -> Calibration:
    """What was measured in place of what was assumed when the plan was made.

    at_least_bytes: what the peak is taken to be, where memory ran out before it was reached.
    """
    # memory_parts.vram_parts: the sum of all parts but the context is slack times the bytes of the formula.
    context = sum(part.nbytes for part in plan.vram if part.name == "CUDA context")
    held = max(measured.peak.held, at_least_bytes)
    predicted, rate = predicted_seconds(plan, measured.tokens), measured.traffic.gigabytes_per_second
    flops = assumed.flops
    if predicted and not measured.ran_out:
        flops *= predicted / max(1e-9, measured.step_seconds - measured.traffic.seconds_waited)
    return msgspec.structs.replace(
        assumed,
        vram_factor=assumed.vram_factor * (held - measured.peak.context) / max(1, plan.peak_vram_bytes - context),
        context_bytes=measured.peak.context or assumed.context_bytes,
        flops=flops,
        bytes_per_second=assumed.bytes_per_second if rate is None else 1e9 * rate,
    )


def predicted_seconds(plan: MemoryPlan, tokens: int) -> float | None:
    """Of a micro-batch of so many tokens."""
    return None if not plan.tokens_per_second else tokens / plan.tokens_per_second


def _levers(plan: MemoryPlan) -> dict[str, object]:
    """What a plan chooses, without what it predicts."""
    return {
        "micro-batch": plan.batching.micro_batch,
        "resident layers": plan.resident_layers,
        "slots": plan.slots,
        "recompute": plan.recompute,
        "offloaded checkpoints": plan.offload_checkpoints,
        "staging": plan.staging,
        "head tile": plan.head_tile_rows,
        "MLP tile": plan.mlp_tile_tokens,
        "optimizer": plan.optimizer,
    }


def _with_layers(plan: MemoryPlan, measured: Measured, more: int, layer_bytes: int) -> MemoryPlan:
    """The same plan with `more` (or fewer) resident layers; its VRAM is what was measured, changed by just that."""
    streamed = plan.streamed_layers - more
    slots = min(plan.slots or DEFAULT_SLOTS, streamed)
    difference = measured.peak.held - plan.peak_vram_bytes
    change = (more + slots - plan.slots) * layer_bytes
    return msgspec.structs.replace(
        plan,
        resident_layers=plan.resident_layers + more,
        streamed_layers=streamed,
        slots=slots,
        vram=(*plan.vram, Part("found by the probe", difference + change)),
    )


def comparison(plan: MemoryPlan, measured: Measured) -> Table:
    """Predicted beside measured, as a person reads it."""
    peak, moved, predicted = measured.peak, measured.traffic, predicted_bytes(plan)
    on_card = plan.device == "cuda"
    reached = format_size(peak.held) + (", then it ran out" if measured.ran_out else "")
    rows = [("peak VRAM" if on_card else "peak RAM", format_size(predicted), reached, _percent(peak.held, predicted))]
    if on_card:
        rows.append(("of it tensors", "", format_size(peak.tensors), ""))
        rows.append(("of it context", "", format_size(peak.context), ""))
    rows.append(("budget", "", format_size(budget_bytes(plan)), ""))
    if not measured.ran_out:
        seconds = predicted_seconds(plan, measured.tokens)
        told = ("", "") if seconds is None else (format_seconds(seconds), _percent(measured.step_seconds, seconds))
        micro_batch = f"{measured.tokens} tokens at once"
        rows.append((micro_batch, told[0], format_seconds(measured.step_seconds), told[1]))
        if measured.evaluation_seconds is not None:
            rows.append(("an evaluation's", "", format_seconds(measured.evaluation_seconds), ""))
        if (rate := moved.gigabytes_per_second) is not None:
            rows.append(("to the card", "", f"{rate:.1f} GB/s", ""))
            rows.append(("copies hidden", f"{plan.copies_hidden:.0%}", f"{moved.hidden:.0%}", ""))
    columns = (Column("probe"), Column("predicted"), Column("measured"), Column("off by"))
    return Table("Probe: two steps on the longest samples", columns, tuple(rows))


def _percent(measured: float, predicted: float) -> str:
    return f"{100 * (measured / predicted - 1):+.0f} %" if predicted else ""
