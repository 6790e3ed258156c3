"""Fits training to a machine without a card: what it takes of RAM and time, by formulas fitted to measured runs."""

from __future__ import annotations

from amigo_local.domain.machine import Machine
from amigo_local.domain.memory_plan import Lever, MemoryPlan, Part
from amigo_local.domain.units import MIB
from amigo_local.training.buffer_sizes import KEEP_DECODED_BYTES
from amigo_local.training.fit import Fit, another_micro_batch, batching, budget, divisors, optimizer_of, total
from amigo_local.training.memory_formula import (
    ASSUMED,
    Job,
    adapter_parameters,
    layer_bytes,
    micro_batch_rows,
    padded_length,
    table_bytes,
)
from amigo_local.training.memory_parts import disk_parts

LORA_TRAINING_BYTES = 16
"""Per trained parameter, f32: weight 4, gradient 4, AdamW's two moments 8."""
PROCESS_BYTES = 540 * MIB
"""RSS of Python with torch, transformers, trl and a toy model: 503 MiB measured on Linux, and what fits `ram_parts`."""
HEAD_BYTES = 32 * MIB  # tiled_head, measured at 49,152 and 262,208 rows
TOKENS_PER_MICRO_BATCH = 512
"""SmolLM2-135M gained nothing from larger ones (124, 146, 122 tok/s a core at 1, 2, 4 samples)."""
FLOPS_PER_CORE = 70e9
"""Effective in training SmolLM2-135M in bf16 on a 2.6 GHz Zen 4 core (145 tok/s); half without AVX512-BF16."""
RECOMPUTE_ABOVE = 1_000_000_000
"""Parameters: below, recomputing costs a third of the time to save memory that is there."""


def processor_plan(job: Job, machine: Machine) -> Fit:
    """One lever, the micro-batch: the base lies in memory as it is."""
    ram = budget(machine, "RAM")
    settings, shape = job.settings, job.shape
    micro = settings.micro_batch or 1
    if settings.micro_batch is None:
        for divisor in divisors(settings.effective_batch):
            enough = divisor * job.length <= TOKENS_PER_MICRO_BATCH
            if enough and total(ram_parts(job, divisor)) <= ram:
                micro = divisor
    parts, optimizer, rate = ram_parts(job, micro), optimizer_of(settings, on_card=False), _rate(job, machine.cpu_count)
    step_tokens = settings.effective_batch * job.length * (2 if settings.method == "dpo" else 1)
    levers = []
    if (other := another_micro_batch(job, micro)) is not None:
        lever = Lever(
            name="train.micro_batch",
            chosen=str(micro),
            other=str(other),
            vram_saved_bytes=0,
            ram_saved_bytes=total(ram_parts(job, other)) - total(parts),
            seconds_saved=0.0,
        )
        levers.append(lever)
    plan = MemoryPlan(
        device="cpu",
        batching=batching(job, micro),
        max_length_tokens=job.length,
        optimizer=optimizer,
        recompute=recomputes(shape.parameters),
        resident_layers=shape.layers,
        ram=parts,
        disk=disk_parts(job, optimizer),
        ram_budget_bytes=ram,
        disk_budget_bytes=budget(machine, "disk"),
        levers=tuple(levers),
        step_seconds=step_tokens / rate,
        tokens_per_second=rate,
    )
    if plan.peak_ram_bytes > ram:
        return Fit(plan, "RAM")
    return Fit(plan, "disk" if plan.disk_bytes > machine.disk_free_bytes else None)


def ram_parts(job: Job, micro_batch: int) -> tuple[Part, ...]:
    """Of the peak RSS of a step, and what a probe found beyond it.

    Measured with SmolLM2-135M from its store, rank 16, two steps (MiB): 853 with 64 tokens at once, 1139 with 256, 1568
    with 2 x 256 packed, 2459 with 4 x 256, 4319 with 8 x 256, 2372 with 1 x 1024; predicted are 3 to 5 % more.
    """
    shape, quantization = job.shape, job.settings.quantization
    tables = 2 * shape.embedding_parameters * (1 if shape.tied_embeddings else 2)
    if quantization == "nf4":
        # Mapped as it is in the source, and the head decoded where that is little.
        head = 2 * shape.embedding_parameters
        tables = table_bytes(job) + (head if head <= KEEP_DECODED_BYTES else 0)
    hidden_bytes = 6 * micro_batch_rows(job, micro_batch).tokens * shape.hidden_size
    parts = (
        Part("process", PROCESS_BYTES),
        Part("base", shape.layers * layer_bytes(shape, quantization) + tables),
        Part("adapter", LORA_TRAINING_BYTES * adapter_parameters(job)),
        Part("activations", _activations(job, micro_batch)),
        Part("head", HEAD_BYTES + hidden_bytes),
    )
    excess = job.calibration.vram_factor / ASSUMED.vram_factor - 1
    return (*parts, Part("measured beyond", int(excess * total(parts)))) if excess else parts


def recomputes(parameters: int) -> bool:
    return parameters > RECOMPUTE_ABOVE


def _activations(job: Job, micro_batch: int) -> int:
    shape, rows = job.shape, micro_batch_rows(job, micro_batch)
    hidden, query, mlp, tokens = shape.hidden_size, shape.query_size, shape.intermediate_size, rows.tokens
    mask = 2 * rows.rows * rows.width**2
    if not recomputes(shape.parameters):
        # Autograd keeps, of one layer: norms 20H; f32 copies of LoRA inputs 20H + 4Q + 4I; attention's q, k, v and
        # output 8Q; the gated MLP 6I. Times 1.25, fitted to the RSS in `ram_parts`.
        # Each layer keeps the mask of a row of several samples in its own dtype.
        masks = shape.layers * mask if rows.width > padded_length(job) else 0
        return shape.layers * tokens * int(1.25 * (40 * hidden + 12 * query + 10 * mlp)) + masks
    # A bf16 hidden state per layer, one layer's recomputation, the attention mask, and one dequantized weight.
    checkpoints = 2 * (shape.layers + 2) * tokens * hidden
    return checkpoints + int(2 * tokens * (6.6 * mlp + 24.6 * hidden)) + mask + 2 * mlp * hidden


def _rate(job: Job, cpu_count: int) -> float:
    """Tokens a second. Forward and the backward through frozen weights cost 2 FLOP a weight each; recomputing, 2 more.

    LoRA costs 6; the head, scored at about half of the positions, 2. One core is left to the rest.
    """
    shape = job.shape
    passes = 6 if recomputes(shape.parameters) else 4
    flop = passes * shape.layers * shape.layer_parameters + 2 * shape.embedding_parameters
    flop += 6 * adapter_parameters(job)
    return FLOPS_PER_CORE * job.calibration.flops / ASSUMED.flops * max(1, cpu_count - 1) / flop
