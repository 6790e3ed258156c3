"""Why training doesn't fit a machine, and the nearest changes of the recipe that would."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import msgspec

from amigo_local.domain.errors import InputError
from amigo_local.domain.machine import Machine
from amigo_local.domain.memory_plan import MemoryPlan
from amigo_local.domain.recipe import MemorySettings, TrainSettings
from amigo_local.domain.units import GIB, format_size
from amigo_local.training.fit import USABLE_SHARE, Fit, Resource, budget, sizes
from amigo_local.training.memory_formula import Job
from amigo_local.training.memory_plan import fitted

SHORTEST, LOWEST_RANK = 128, 8
CARDS_GIB = (8, 12, 16, 24, 40, 48, 80, 141, 192)


class Change(NamedTuple):
    text: str
    """As a person types it: `train.micro_batch=1`."""
    job: Job


def refusal(job: Job, machine: Machine, fit: Fit) -> InputError:
    """The error of a plan that lacks something."""
    assert fit.lacking is not None
    resource, plan, shape = fit.lacking, fit.plan, job.shape
    needed = {"VRAM": plan.peak_vram_bytes, "RAM": plan.peak_ram_bytes, "disk": plan.disk_bytes}[resource]
    return InputError(
        f"{resource}: training needs {format_size(needed)}, there are {format_size(budget(machine, resource))} "
        f"({shape.architecture}, {shape.parameters / 1e9:.1f} B parameters, {job.settings.quantization}, "
        f"{plan.batching.micro_batch} x {job.length} tokens at once)",
        _hint(job, machine, resource, needed),
    )


def _hint(job: Job, machine: Machine, resource: Resource, needed: int) -> str:
    if resource == "disk":
        return f"free {format_size(needed - machine.disk_free_bytes)} of disk, or give another --home"
    tried = (_first_that_fits(changes, machine) for changes in (_levers(job), _shorter(job), _lower_rank(job)))
    found = [way for way in tried if way is not None]
    if not found and (way := _first_that_fits(_shorter_and_lower(job), machine)) is not None:
        found = [way]
    if found:
        return "; or ".join(f"--set {change.text} would fit ({sizes(plan)})" for change, plan in found[:2])
    if resource == "RAM":
        machine_bytes = format_size(needed / USABLE_SHARE)
        return f"no shorter length or lower rank fits: take a smaller model, or a machine with {machine_bytes}"
    return f"no shorter length or lower rank fits this card: take {_another_card(job, machine)}a smaller model"


def _first_that_fits(changes: Iterator[Change], machine: Machine) -> tuple[Change, MemoryPlan] | None:
    for change in changes:
        fit = fitted(change.job, machine)
        if fit.lacking is None:
            return change, fit.plan
    return None


def _with(job: Job, **changes: Any) -> Job:
    settings: TrainSettings = msgspec.structs.replace(job.settings, **changes)
    return job._replace(settings=settings)


def _levers(job: Job) -> Iterator[Change]:
    """What the recipe fixes and the plan would choose otherwise, one after the other and then together."""
    settings, free = job.settings, MemorySettings()
    texts: list[str] = []
    loosened = job
    for field in settings.memory.__struct_fields__:
        if getattr(settings.memory, field) is not None:
            alone = msgspec.structs.replace(settings.memory, **{field: None})
            yield Change(f"train.memory.{field}=null", _with(job, memory=alone))
            texts.append(f"train.memory.{field}=null")
            loosened = _with(loosened, memory=free)
    simple: list[tuple[str, bool, dict[str, Any]]] = [
        ("train.micro_batch=1", (settings.micro_batch or 1) > 1, {"micro_batch": 1}),
        ("train.optimizer=auto", settings.optimizer in ("adamw_torch", "adamw_8bit"), {"optimizer": "auto"}),
        (
            "train.lora.use_dora=false",
            settings.lora.use_dora,
            {"lora": msgspec.structs.replace(settings.lora, use_dora=False)},
        ),
        ("train.quantization=nf4", settings.quantization == "none", {"quantization": "nf4"}),
    ]
    together: list[str] = []
    for text, applies, change in simple:
        if not applies:
            continue
        yield Change(text, _with(job, **change))
        loosened = _with(loosened, **change)
        together.append(text)
        if len(together) > 1 or texts:
            yield Change(" --set ".join([*texts, *together]), loosened)


def _least(job: Job) -> Job:
    """Every lever free and the smallest micro-batch, so that only what follows is changed besides."""
    micro = None if job.settings.micro_batch is None else 1
    return _with(job, micro_batch=micro)


def _shorter(job: Job) -> Iterator[Change]:
    length, least = job.length // 2, _least(job)
    while length >= SHORTEST:
        yield Change(f"data.max_length_tokens={length}", job._replace(length=length))
        if least != job:
            text = f"data.max_length_tokens={length} --set train.micro_batch=1"
            yield Change(text, least._replace(length=length))
        length //= 2


def _lower_rank(job: Job) -> Iterator[Change]:
    lora = job.settings.lora
    rank = lora.rank // 2
    while rank >= LOWEST_RANK:
        yield Change(f"train.lora.rank={rank}", _with(job, lora=msgspec.structs.replace(lora, rank=rank)))
        rank //= 2


def _shorter_and_lower(job: Job) -> Iterator[Change]:
    for lower in _lower_rank(job):
        for change in _shorter(lower.job):
            yield Change(f"{lower.text} --set {change.text}", change.job)


def _another_card(job: Job, machine: Machine) -> str:
    """`a rented GPU with 24 GiB, or `, with the RAM that is wanted beside it; empty where no one card is enough."""
    for size in CARDS_GIB:
        larger = msgspec.structs.replace(machine, vram_free_bytes=size * GIB, vram_total_bytes=size * GIB)
        if size * GIB <= (machine.vram_total_bytes or 0):
            continue
        fit = fitted(job, larger)
        if fit.lacking != "VRAM":
            ram = f" in a machine with {format_size(fit.plan.peak_ram_bytes / USABLE_SHARE)} of free RAM"
            return f"a rented GPU with {size} GiB{ram if fit.lacking == 'RAM' else ''}, or "
    return ""
