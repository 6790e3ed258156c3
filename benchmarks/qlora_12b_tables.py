"""Measurements as the Markdown of docs/measurements.md, and what they say about the targets."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Iterator, Sequence

import msgspec

from amigo_local.domain.memory_plan import MemoryPlan
from amigo_local.domain.shape import ModelShape
from amigo_local.domain.units import GIB
from amigo_local.training.copy_engine import Traffic
from amigo_local.training.memory_formula import Calibration, Job, Levers
from amigo_local.training.probe import calibrated
from amigo_local.training.rehearsal import Measured
from amigo_local.training.step_time import step_time
from benchmarks.qlora_12b_ours import settings_of
from benchmarks.qlora_12b_records import TARGET_BYTES_PER_SECOND, Measurement, Setup, Side, Task
from benchmarks.qlora_12b_store import TABLE_TYPE

PEAK_TARGET_BYTES = 5.6 * GIB
PEAK_TARGET_TOKENS, PEAK_TARGET_RANK = 2048, 32
PREDICTION_TARGET = 0.05
SHARE_TARGET, SHARE_TARGET_TOKENS = 0.95, 512

Results = Sequence[Measurement]


def report(results: Results, setup: Setup, shape: ModelShape) -> Iterator[str]:
    """Lines of Markdown."""
    yield from _section("Peak VRAM against the plan", memory_lines(results))
    yield from _section("Streamed against resident", speed_lines(results))
    yield from _section("Time against the plan", time_lines(results, setup, shape))
    yield from _section("The peer: TRL and bitsandbytes by themselves", peer_lines(results))
    yield from _section("Attention", kernel_lines(results))
    yield from _section("What the product said", note_lines(results))
    yield from _section("Targets", target_lines(results))


def _section(title: str, lines: Iterable[str]) -> Iterator[str]:
    found = list(lines)
    if found:
        yield from ("", f"### {title}", "", *found)


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> Iterator[str]:
    found = list(rows)
    if found:
        yield f"| {' | '.join(head)} |"
        yield f"|{'---|' * len(head)}"
        yield from (f"| {' | '.join(row)} |" for row in found)


def repetitions(results: Results, *sides: Side) -> dict[Task, list[Measurement]]:
    """Those measured, by task, in the order of method, rank and tokens."""
    grouped: dict[Task, list[Measurement]] = {}
    for found in results:
        if found.outcome == "measured" and found.task.side in sides:
            grouped.setdefault(msgspec.structs.replace(found.task, repetition=0), []).append(found)

    def order(task: Task) -> tuple[object, ...]:
        return (task.side, task.method == "dpo", task.rank, task.tokens, task.samples == 1, task.staging, task.probe)

    return dict(sorted(grouped.items(), key=lambda item: order(item[0])))


def rate(found: Results) -> float:
    """Tokens a second: the median of the processes, each of which is the median of its steps."""
    return statistics.median(one.tokens_per_second for one in found)


def scaled_rate(found: Results) -> float:
    return statistics.median(one.scaled_tokens_per_second for one in found)


def traffic(found: Results) -> Traffic:
    """Of one step, on average."""
    moved = [msgspec.structs.asdict(step.traffic) for one in found for step in one.steps]
    return Traffic(**{name: statistics.mean(step[name] for step in moved) for name in Traffic.__struct_fields__})


# -- Memory


def held(one: Measurement) -> int:
    """What the driver has given this process at most: the allocator's peak, and CUDA's context."""
    assert one.memory is not None
    return one.memory.peak.held


def prediction_error(one: Measurement) -> float:
    """Of the whole peak, with this card's context."""
    assert one.plan is not None
    return held(one) / one.plan.peak_vram_bytes - 1


def error_without_context(one: Measurement) -> float:
    """Of what the allocator holds: contexts differ between cards, and the plan assumes a laptop card's."""
    assert one.plan is not None and one.memory is not None
    return one.memory.peak.reserved / (one.plan.peak_vram_bytes - _context(one.plan)) - 1


def _context(plan: MemoryPlan) -> int:
    return sum(part.nbytes for part in plan.vram if part.name == "CUDA context")


def memory_lines(results: Results) -> Iterator[str]:
    head = ("GiB", "layers that stay", "cap", "predicted", "held", "off by", "reserved", "off by", "tensors", "context")
    head = (*head, "driver, difference", "driver, process")

    def rows() -> Iterator[tuple[str, ...]]:
        for task, found in repetitions(results, "streamed", "resident").items():
            one = max(found, key=held)
            assert one.plan is not None and one.memory is not None
            plan, peak = one.plan, one.memory.peak
            yield (
                str(task),
                f"{plan.resident_layers} of {plan.resident_layers + plan.streamed_layers}{_levers(plan)}",
                _gib(one.cap_bytes),
                _gib(plan.peak_vram_bytes),
                _gib(peak.held),
                f"{prediction_error(one):+.1%}",
                _gib(peak.reserved),
                f"{error_without_context(one):+.1%}",
                _gib(peak.tensors),
                _gib(peak.context),
                _gib(one.memory.driver_difference_bytes),
                _gib(one.memory.driver_process_bytes),
            )

    yield from _table(head, rows())
    yield from (
        "",
        "Held is what the allocator reserved at most, and the context: what the driver counts beyond. The first error "
        "is of the whole, the second of the allocator's part, since the plan assumes a laptop card's context.",
    )


def _levers(plan: MemoryPlan) -> str:
    told = [", checkpoints offloaded"] * plan.offload_checkpoints
    told += [f", MLP tiles of {plan.mlp_tile_tokens}"] * (plan.mlp_tile_tokens is not None)
    return "".join(told)


def _gib(nbytes: int | None) -> str:
    return "" if nbytes is None else f"{nbytes / GIB:.2f}"


# -- Speed


def pairs(results: Results) -> Iterator[tuple[Task, list[Measurement], list[Measurement]]]:
    """(task of the streamed side, its repetitions, those of the resident side) where both were measured."""
    streamed, resident = repetitions(results, "streamed"), repetitions(results, "resident")
    for task, found in streamed.items():
        other = resident.get(msgspec.structs.replace(task, side="resident", staging="ring", probe=False))
        if other:
            yield task, found, other


def speed_lines(results: Results) -> Iterator[str]:
    head = ("tok/s", "resident", "streamed", "share", "processes", "GB a step", "GB/s", "copies hidden", "predicted")
    head = (*head, "at 11 GB/s: resident", "streamed", "share")
    same = total = 0

    def rows() -> Iterator[tuple[str, ...]]:
        nonlocal same, total
        for task, streamed, resident in pairs(results):
            moved, plan = traffic(streamed), streamed[0].plan
            assert plan is not None
            total += 1
            same += streamed[0].steps[0].loss == resident[0].steps[0].loss
            yield (
                str(task).removeprefix("streamed, "),
                f"{rate(resident):,.0f}",
                f"{rate(streamed):,.0f}",
                f"{rate(streamed) / rate(resident):.1%}",
                f"{len(resident)} and {len(streamed)}",
                f"{moved.nbytes / 1e9:.2f}",
                f"{moved.gigabytes_per_second or 0:.1f}",
                f"{moved.hidden:.0%}",
                f"{plan.copies_hidden:.0%}",
                f"{scaled_rate(resident):,.0f}",
                f"{scaled_rate(streamed):,.0f}",
                f"{scaled_rate(streamed) / scaled_rate(resident):.1%}",
            )

    yield from _table(head, rows())
    yield from (
        "",
        f"The first timed loss is the same number on both sides in {same} of {total}. At 11 GB/s: a step then takes "
        f"max(measured - waited for copies, bytes / {TARGET_BYTES_PER_SECOND / 1e9:.0f} GB/s), on this card's own "
        "computing; the head's tiles are copied on both sides.",
    )


# -- Time


def calibration_of(results: Results) -> tuple[Task, Calibration] | None:
    """What the product's probe would make of the longest streamed SFT."""
    candidates = {t: f for t, f in repetitions(results, "streamed").items() if t.method == "sft" and t.samples > 1}
    task = max(candidates, key=lambda it: (it.rank, it.tokens), default=None)
    if task is None:
        return None
    one = candidates[task][0]
    assert one.plan is not None and one.memory is not None
    seen = Measured(
        tokens=task.tokens_per_step,
        peak=one.memory.peak,
        step_seconds=statistics.median(step.seconds for step in one.steps),
        traffic=traffic([one]),
    )
    return task, calibrated(Calibration(), one.plan, seen)


def time_lines(results: Results, setup: Setup, shape: ModelShape) -> Iterator[str]:
    found = calibration_of(results)
    if found is None:
        return
    by, calibration = found

    def rows() -> Iterator[tuple[str, ...]]:
        for task, measured in repetitions(results, "streamed", "resident").items():
            plan = measured[0].plan
            assert plan is not None and plan.tokens_per_second is not None
            job = Job(shape, settings_of(task, setup), plan.max_length_tokens, TABLE_TYPE, calibration)
            predicted = step_time(job, levers_of(plan)).tokens_per_second
            yield (
                str(task),
                f"{plan.tokens_per_second:,.0f}",
                f"{predicted:,.0f}",
                f"{rate(measured):,.0f}",
                f"{predicted / rate(measured) - 1:+.0%}",
            )

    head = ("tok/s", "predicted for an RTX 4050", "predicted after the probe", "measured", "off by")
    yield from _table(head, rows())
    yield ""
    flops, link = calibration.flops / 1e12, calibration.bytes_per_second / 1e9
    yield f"After the probe: {flops:.1f} TFLOPS and {link:.1f} GB/s, as read off {by}."


def levers_of(plan: MemoryPlan) -> Levers:
    return Levers(
        micro_batch=plan.batching.micro_batch,
        resident=plan.resident_layers,
        recompute=plan.recompute,
        offload=plan.offload_checkpoints,
        slots=plan.slots,
        head_tile_rows=plan.head_tile_rows,
        mlp_tile_tokens=plan.mlp_tile_tokens,
        optimizer=plan.optimizer,
        staging=plan.staging,
    )


# -- The rest


def peer_lines(results: Results) -> Iterator[str]:
    def rows() -> Iterator[tuple[str, ...]]:
        for one in results:
            if not one.task.side.startswith("peer"):
                continue
            peak = one.memory.peak if one.memory else None
            yield (
                str(one.task),
                _gib(one.cap_bytes) or "none",
                f"{one.outcome}, {one.phase}" if one.phase else one.outcome,
                _gib(peak.reserved if peak else None),
                _gib(peak.held if peak else None),
                f"{one.tokens_per_second:,.0f}" if one.steps else "",
                " → ".join(f"`{frame}`" for frame in one.frames[-2:]),
            )

    yield from _table(("", "cap, GiB", "outcome", "reserved, GiB", "held, GiB", "tok/s", "where"), rows())


def kernel_lines(results: Results) -> Iterator[str]:
    by_kernels: dict[tuple[str, ...], list[str]] = {}
    for task, found in repetitions(results, "streamed", "resident", "peer", "peer uncapped").items():
        by_kernels.setdefault(found[0].kernels, []).append(str(task))
    yield from _table(
        ("operators of torch", "in"),
        ((", ".join(f"`{name}`" for name in names), "; ".join(tasks)) for names, tasks in by_kernels.items()),
    )


def note_lines(results: Results) -> Iterator[str]:
    for one in results:
        told = [*one.notes, *([] if one.outcome == "measured" else [f"{one.outcome}: {one.message}"])]
        yield from (f"- {one.task}: {text.splitlines()[0]}" for text in told if text)


def target_lines(results: Results) -> Iterator[str]:
    yield from _table(("target", "measured", ""), (_peak_target(results), _prediction_target(results)))
    yield from (f"| {' | '.join(row)} |" for row in (_share_target(results), _peer_target(results)))


def _verdict(met: bool) -> str:
    return "met" if met else "**missed**"


def _peak_target(results: Results) -> tuple[str, str, str]:
    text = f"peak at most 5.6 GiB with {PEAK_TARGET_TOKENS} tokens and r={PEAK_TARGET_RANK}"
    peaks = {
        str(task): max(map(held, found))
        for task, found in repetitions(results, "streamed").items()
        if (task.tokens, task.rank) == (PEAK_TARGET_TOKENS, PEAK_TARGET_RANK) and not task.probe
    }
    told = "; ".join(f"{name}: {_gib(peak)} GiB" for name, peak in peaks.items())
    return text, told or "unmeasured", _verdict(max(peaks.values()) <= PEAK_TARGET_BYTES) if peaks else ""


def _prediction_target(results: Results) -> tuple[str, str, str]:
    found = [one for group in repetitions(results, "streamed").values() for one in group if not one.task.probe]
    text = f"peak within {PREDICTION_TARGET:.0%} of the plan"
    if not found:
        return text, "unmeasured", ""
    whole, part = ([error(one) for one in found] for error in (prediction_error, error_without_context))
    told = f"{min(whole):+.1%} to {max(whole):+.1%}; without the context {min(part):+.1%} to {max(part):+.1%}"
    return text, told, _verdict(max(map(abs, whole)) <= PREDICTION_TARGET)


def _share_target(results: Results) -> tuple[str, str, str]:
    text = f"streamed at least {SHARE_TARGET:.0%} of resident from {SHARE_TARGET_TOKENS} tokens on, at 11 GB/s"
    shares = [
        (scaled_rate(streamed) / scaled_rate(resident), task)
        for task, streamed, resident in pairs(results)
        if task.tokens >= SHARE_TARGET_TOKENS and task.staging == "ring" and not task.probe
    ]
    if not shares:
        return text, "unmeasured", ""
    worst, task = min(shares, key=lambda it: it[0])
    told = f"{worst:.1%} at worst ({str(task).removeprefix('streamed, ')}), by this card's computing"
    return text, told, _verdict(worst >= SHARE_TARGET)


def _peer_target(results: Results) -> tuple[str, str, str]:
    capped = [one for one in results if one.task.side == "peer"]
    told = "; ".join(f"{one.outcome}{', ' if one.phase else ''}{one.phase}" for one in capped)
    return "what TRL and bitsandbytes do under the same cap", told or "unmeasured", ""
