"""What each lever of a plan buys: bytes and seconds against its alternative, all others as they are."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from amigo_local.domain.memory_plan import Lever, Optimizer
from amigo_local.training.fit import another_micro_batch, total
from amigo_local.training.memory_formula import Job, Levers, micro_batch_rows
from amigo_local.training.memory_parts import ram_parts, vram_parts
from amigo_local.training.step_time import step_time
from amigo_local.training.working_set import head_tile_bytes, head_work, working_set


class _Cost(NamedTuple):
    vram: int
    ram: int
    seconds: float


def explained(job: Job, levers: Levers) -> tuple[Lever, ...]:
    """Every lever that this model and these samples have, in the order of a recipe.

    Not train.memory.staging: streamed layers take as much RAM page-locked as mapped, and the staging thread's copy is
    beside the computing either way. What it buys shows only where a probe measures the copies.
    """
    mine = _cost(job, levers)
    found = [
        _lever(name, chosen, other, _cost(job, changed), mine) for name, chosen, other, changed in _others(job, levers)
    ]
    tile, vocabulary = levers.head_tile_rows, job.shape.vocabulary
    if tile < vocabulary:
        whole = mine._replace(
            vram=mine.vram + _whole_head_excess(job, levers), seconds=step_time(job, levers, head_on_card=True).seconds
        )
        found.append(_lever("train.memory.head_tile_rows", str(tile), "all on the card", whole, mine))
    return tuple(found)


def _lever(name: str, chosen: str, other: str, alternative: _Cost, mine: _Cost) -> Lever:
    return Lever(
        name=name,
        chosen=chosen,
        other=other,
        vram_saved_bytes=alternative.vram - mine.vram,
        ram_saved_bytes=alternative.ram - mine.ram,
        seconds_saved=alternative.seconds - mine.seconds,
    )


def _others(job: Job, levers: Levers) -> Iterator[tuple[str, str, str, Levers]]:
    """(name, chosen, other, the levers with that one changed)."""
    shape, batch, micro = job.shape, job.settings.effective_batch, levers.micro_batch
    other = another_micro_batch(job, micro)
    if other is not None:
        changed = levers._replace(micro_batch=other)
        yield "train.micro_batch", f"{micro} x {batch // micro}", f"{other} x {batch // other}", changed
    resident, layers = levers.resident, shape.layers
    if job.settings.quantization == "nf4":
        others = 0 if resident == layers else layers
        yield (
            "train.memory.resident_layers",
            f"{resident} of {layers}",
            f"{others} of {layers}",
            levers._replace(resident=others),
        )
    yield "activation checkpointing", *_on_off(levers.recompute), levers._replace(recompute=not levers.recompute)
    yield (
        "train.memory.offload_checkpoints",
        *_on_off(levers.offload),
        levers._replace(offload=not levers.offload),
    )
    tokens = micro_batch_rows(job, micro).tokens
    tile = levers.mlp_tile_tokens
    tiled = tile is not None and tile < tokens
    if tiled or tokens > 512:
        changed = levers._replace(mlp_tile_tokens=None if tiled else 512)
        yield "train.memory.mlp_tile_tokens", str(tile) if tiled else "all", "all" if tiled else "512", changed
    optimizer: Optimizer = "adamw_torch" if levers.optimizer != "adamw_torch" else "paged_adamw_8bit"
    yield "train.optimizer", levers.optimizer, optimizer, levers._replace(optimizer=optimizer)


def _on_off(value: bool) -> tuple[str, str]:
    return ("on", "off") if value else ("off", "on")


def _cost(job: Job, levers: Levers) -> _Cost:
    return _Cost(total(vram_parts(job, levers)), total(ram_parts(job, levers)), step_time(job, levers).seconds)


def _whole_head_excess(job: Job, levers: Levers) -> int:
    """More VRAM with the head in bf16 on the card and every logit at once: f32 logits, their softmax and its bf16."""
    shape = job.shape
    tokens = micro_batch_rows(job, levers.micro_batch).tokens
    head = 2 * shape.embedding_parameters
    logits = 10 * tokens * shape.vocabulary
    _, work, _ = working_set(job, levers, tokens)
    at_head = head_work(job, levers) - head_tile_bytes(job, levers) + logits
    return int(job.calibration.vram_factor * (head + max(0, at_head - work)))
