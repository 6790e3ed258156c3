"""Fits training to a machine: which levers to pull, what each buys, and what to change when nothing fits."""

from __future__ import annotations

import math
from collections.abc import Iterator

from amigo_local.domain.errors import InputError
from amigo_local.domain.machine import Machine
from amigo_local.domain.memory_plan import HEAD_TILE_ROWS, MemoryPlan
from amigo_local.domain.plan import Needs
from amigo_local.domain.recipe import TrainSettings
from amigo_local.domain.shape import ModelShape
from amigo_local.training.cpu_plan import processor_plan
from amigo_local.training.fit import Fit, batching, budget, divisors, optimizer_of, total
from amigo_local.training.levers import explained
from amigo_local.training.memory_formula import (
    ASSUMED,
    DEFAULT_SLOTS,
    Calibration,
    Job,
    Levers,
    layer_bytes,
    micro_batch_rows,
)
from amigo_local.training.memory_parts import disk_parts, ram_parts, vram_parts
from amigo_local.training.step_time import step_time

DEFAULT_TABLE_TYPE = "Q6_K"
"""Of the embedding in Ollama's Q4_K_M models."""
TOKENS_PER_MICRO_BATCH = 8192
"""Larger ones gain nothing: copies hide from a few hundred tokens on."""
MLP_TILES = (None, 2048, 1024, 512)
HEAD_TILES = (HEAD_TILE_ROWS, 4096, 2048)
AS_GOOD = 1.08
"""A plan that is slower by no more is as good: it is then the one with less host memory."""


def choose_plan(
    shape: ModelShape,
    settings: TrainSettings,
    max_length_tokens: int,
    machine: Machine,
    *,
    table_type: str = DEFAULT_TABLE_TYPE,
    calibration: Calibration = ASSUMED,
) -> MemoryPlan:
    """The fastest plan that fits. Reads nothing and measures nothing: milliseconds.

    table_type: ggml's name of the type that embedding and head are stored in.
    Raises InputError for levers that contradict the model or the recipe, and where nothing fits: it names the
    resource that binds and the nearest changes that would fit.
    """
    from amigo_local.training.memory_refusal import refusal

    job = Job(shape, settings, max_length_tokens, table_type, calibration)
    fit = fitted(job, machine)
    if fit.lacking is not None:
        raise refusal(job, machine, fit)
    return fit.plan


def needs(
    plan: MemoryPlan, settings: TrainSettings, *, samples: int | None = None, mean_length_tokens: float | None = None
) -> Needs:
    """Of the whole stage. Seconds are known where `samples` is, or settings.max_steps bounds the run; without
    `mean_length_tokens` every sample counts as max_length_tokens long, an upper bound."""
    steps = None if samples is None else max(1, math.ceil(settings.epochs * samples / settings.effective_batch))
    if settings.max_steps is not None:
        steps = settings.max_steps if steps is None else min(steps, settings.max_steps)
    seconds = None
    if steps is not None and plan.step_seconds is not None:
        seconds = steps * plan.step_seconds * min(1.0, (mean_length_tokens or math.inf) / plan.max_length_tokens)
    return Needs(
        vram_bytes=plan.peak_vram_bytes, ram_bytes=plan.peak_ram_bytes, disk_bytes=plan.disk_bytes, seconds=seconds
    )


def fitted(job: Job, machine: Machine) -> Fit:
    """Raises InputError for impossible levers only."""
    _check_levers(job)
    return _on_card(job, machine) if machine.gpu_name is not None else processor_plan(job, machine)


def _check_levers(job: Job) -> None:
    settings, shape = job.settings, job.shape
    batch, wanted, resident = settings.effective_batch, settings.micro_batch, settings.memory.resident_layers
    if wanted is not None and batch % wanted:
        raise InputError(
            f"train.micro_batch is {wanted}, which does not divide train.effective_batch of {batch}",
            f"use one of: {', '.join(str(d) for d in divisors(batch))}",
        )
    if resident is not None and resident > shape.layers:
        raise InputError(
            f"train.memory.resident_layers is {resident}, the model has {shape.layers} layers",
            f"use 0 to {shape.layers}, or leave it out: the plan keeps as many as fit",
        )
    if settings.quantization == "none" and resident is not None and resident < shape.layers:
        raise InputError(
            f"train.memory.resident_layers is {resident}, but only NF4 layers stream",
            "leave it out, or set train.quantization=nf4",
        )


# -- On a card


def _on_card(job: Job, machine: Machine) -> Fit:
    vram, ram = budget(machine, "VRAM"), budget(machine, "RAM")
    for head_tile in _head_tiles(job):
        for mlp_tile in _mlp_tiles(job):
            # Both tiles cost time and are there for the longest samples: the first that fits is taken.
            plans = [
                (step_time(job, levers).seconds, ram_bytes, levers)
                for levers in _candidates(job, head_tile, mlp_tile, vram)
                if total(vram_parts(job, levers)) <= vram and (ram_bytes := total(ram_parts(job, levers))) <= ram
            ]
            if plans:
                limit = AS_GOOD * min(seconds for seconds, _, _ in plans)
                *_, best = min((p for p in plans if p[0] <= limit), key=lambda p: (p[1], p[0]))
                plan = card_plan(job, best, machine)
                return Fit(plan, "disk" if plan.disk_bytes > machine.disk_free_bytes else None)
    smallest = card_plan(job, _smallest(job, vram), machine)
    return Fit(smallest, "VRAM" if smallest.peak_vram_bytes > vram else "RAM")


def _candidates(job: Job, head_tile: int, mlp_tile: int | None, vram: int) -> Iterator[Levers]:
    """With as many layers on the card as there is room for; the first micro-batch without room for any is the last."""
    memory = job.settings.memory
    offloads = (False, True) if memory.offload_checkpoints is None else (memory.offload_checkpoints,)
    for offload in offloads:
        for micro in _micro_batches(job):
            levers = Levers(
                micro_batch=micro,
                resident=0,
                offload=offload,
                slots=memory.slots or DEFAULT_SLOTS,
                head_tile_rows=head_tile,
                mlp_tile_tokens=mlp_tile,
                optimizer=optimizer_of(job.settings, on_card=True),
                staging=memory.staging or "ring",
            )
            free = vram - total(vram_parts(job, levers))
            yield levers._replace(resident=_resident(job, levers, vram, free))
            if free < 0:
                break


def _resident(job: Job, levers: Levers, vram: int, free: int) -> int:
    """free: of `vram`, with no layer on the card."""
    layers, fixed = job.shape.layers, job.settings.memory.resident_layers
    if fixed is not None:
        return fixed
    if job.settings.quantization == "none":
        return layers
    if free >= 0 and total(vram_parts(job, levers._replace(resident=layers))) <= vram:
        return layers
    one = layer_bytes(job.shape) * job.calibration.vram_factor
    return max(0, min(layers - levers.slots, int(free / one)))


def _micro_batches(job: Job) -> list[int]:
    if job.settings.micro_batch is not None:
        return [job.settings.micro_batch]
    most = max(1, TOKENS_PER_MICRO_BATCH // job.length)
    return [d for d in divisors(job.settings.effective_batch) if d <= most]


def _mlp_tiles(job: Job) -> tuple[int | None, ...]:
    fixed = job.settings.memory.mlp_tile_tokens
    return MLP_TILES if fixed is None else (fixed,)


def _head_tiles(job: Job) -> tuple[int, ...]:
    fixed = job.settings.memory.head_tile_rows
    return HEAD_TILES if fixed is None else (fixed,)


def _smallest(job: Job, vram: int) -> Levers:
    """What takes the least VRAM; then the least RAM, from layers that stay on the card."""
    candidates = _candidates(job, _head_tiles(job)[-1], _mlp_tiles(job)[-1], vram)
    return min(candidates, key=lambda found: (max(vram, total(vram_parts(job, found))), total(ram_parts(job, found))))


def card_plan(job: Job, levers: Levers, machine: Machine) -> MemoryPlan:
    """The whole plan of chosen levers."""
    time = step_time(job, levers)
    streamed = job.shape.layers - levers.resident
    rows = micro_batch_rows(job, levers.micro_batch)
    return MemoryPlan(
        device="cuda",
        batching=batching(job, levers.micro_batch),
        max_length_tokens=job.length,
        optimizer=levers.optimizer,
        recompute=levers.recompute,
        offload_checkpoints=levers.offload,
        resident_layers=levers.resident,
        streamed_layers=streamed,
        slots=min(levers.slots, streamed),
        staging=levers.staging,
        head_tile_rows=levers.head_tile_rows,
        mlp_tile_tokens=levers.mlp_tile_tokens if (levers.mlp_tile_tokens or rows.tokens) < rows.tokens else None,
        vram=vram_parts(job, levers),
        ram=ram_parts(job, levers),
        disk=disk_parts(job, levers.optimizer),
        vram_budget_bytes=budget(machine, "VRAM"),
        ram_budget_bytes=budget(machine, "RAM"),
        disk_budget_bytes=budget(machine, "disk"),
        levers=explained(job, levers),
        step_seconds=time.seconds,
        tokens_per_second=time.tokens_per_second,
        copies_hidden=time.copies_hidden,
    )
