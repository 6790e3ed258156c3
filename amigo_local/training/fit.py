"""How much of a machine a plan may take, and whether it does."""

from __future__ import annotations

from typing import Literal, NamedTuple

from amigo_local.domain.machine import Machine
from amigo_local.domain.memory_plan import Batching, MemoryPlan, Optimizer, Part
from amigo_local.domain.recipe import TrainSettings
from amigo_local.domain.units import format_size
from amigo_local.training.memory_formula import Job

USABLE_SHARE = 0.93
"""Of what is free: 5.6 of a 6 GiB card, the rest being the desktop's."""
Resource = Literal["VRAM", "RAM", "disk"]


class Fit(NamedTuple):
    """The best plan, or the smallest one and what it lacks."""

    plan: MemoryPlan
    lacking: Resource | None


def budget(machine: Machine, resource: Resource) -> int:
    if resource == "disk":
        return machine.disk_free_bytes
    free = machine.ram_available_bytes
    if resource == "VRAM":
        free = machine.vram_free_bytes if machine.vram_free_bytes is not None else machine.vram_total_bytes or 0
    return int(USABLE_SHARE * free)


def total(parts: tuple[Part, ...]) -> int:
    return sum(part.nbytes for part in parts)


def sizes(plan: MemoryPlan) -> str:
    """`4.9 GiB VRAM and 8.2 GiB RAM`."""
    ram = f"{format_size(plan.peak_ram_bytes)} RAM"
    return ram if plan.device == "cpu" else f"{format_size(plan.peak_vram_bytes)} VRAM and {ram}"


def batching(job: Job, micro: int) -> Batching:
    return Batching(micro_batch=micro, accumulation=job.settings.effective_batch // micro)


def divisors(number: int) -> list[int]:
    return [d for d in range(1, number + 1) if number % d == 0]


def another_micro_batch(job: Job, micro: int) -> int | None:
    """The next larger one, or else the next smaller."""
    others = [d for d in divisors(job.settings.effective_batch) if d != micro]
    return next((d for d in others if d > micro), others[-1] if others else None)


def optimizer_of(settings: TrainSettings, *, on_card: bool) -> Optimizer:
    if settings.optimizer != "auto":
        return settings.optimizer
    return "paged_adamw_8bit" if on_card else "adamw_torch"
