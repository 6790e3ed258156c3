"""VRAM, RAM and disk that training takes, as named parts that sum to the peak."""

from __future__ import annotations

from amigo_local.domain.memory_plan import Optimizer, Part
from amigo_local.domain.units import MIB
from amigo_local.training.buffer_sizes import CHUNK_BYTES, CHUNKS
from amigo_local.training.memory_formula import (
    PROCESS_BYTES,
    Job,
    Levers,
    adapter_parameters,
    layer_bytes,
    micro_batch_rows,
    offloaded_bytes,
    optimizer_state,
    small_bytes,
    table_bytes,
)
from amigo_local.training.working_set import working_set


def vram_parts(job: Job, levers: Levers) -> tuple[Part, ...]:
    """In the order of a stacked bar; the sum is the peak."""
    shape, calibration = job.shape, job.calibration
    one_layer = layer_bytes(shape, job.settings.quantization)
    streamed = shape.layers - levers.resident
    adapter = 4 * adapter_parameters(job)
    state = optimizer_state(job, levers.optimizer)
    tokens = micro_batch_rows(job, levers.micro_batch).tokens
    name, work, checkpoints = working_set(job, levers, tokens)
    parts = [
        ("resident layers", levers.resident * one_layer),
        ("layer slots", min(levers.slots, streamed) * one_layer),
        ("norms", small_bytes(shape)),
        ("adapter", adapter),
        ("its gradients", adapter),
        ("optimizer", state.on_card),
        ("checkpoints", checkpoints),
        (name, work),
    ]
    slack = int(sum(nbytes for _, nbytes in parts) * (calibration.vram_factor - 1))
    parts = [("CUDA context", calibration.context_bytes), *parts, ("allocator slack", max(0, slack))]
    return tuple(Part(name, nbytes) for name, nbytes in parts if nbytes)


def ram_parts(job: Job, levers: Levers) -> tuple[Part, ...]:
    """Streamed layers and tables are pages of mapped files: what doesn't fit is read again at each pass, from disk."""
    shape = job.shape
    one_layer = layer_bytes(shape, job.settings.quantization)
    streamed = shape.layers - levers.resident
    tokens = micro_batch_rows(job, levers.micro_batch).tokens
    parts = [
        ("process", PROCESS_BYTES),
        ("streamed layers", streamed * one_layer),
        ("embedding and head", table_bytes(job)),
        ("offloaded checkpoints", offloaded_bytes(job, tokens) if levers.offload else 0),
        ("staging ring", CHUNKS * CHUNK_BYTES),
        ("paged optimizer", optimizer_state(job, levers.optimizer).paged),
    ]
    return tuple(Part(name, nbytes) for name, nbytes in parts if nbytes)


def disk_parts(job: Job, optimizer: Optimizer) -> tuple[Part, ...]:
    """Checkpoints hold the adapter and AdamW's moments; one more than are kept is written aside."""
    adapter, state = 4 * adapter_parameters(job), optimizer_state(job, optimizer)
    kept = job.settings.keep_checkpoints + 1 + job.settings.keep_best
    return (
        Part("checkpoints", kept * (adapter + state.on_card + state.paged)),
        Part("adapter", adapter),
        Part("logs", 16 * MIB),
    )
