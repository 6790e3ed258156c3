"""Seconds of an optimizer step on a card, from multiply-adds, bytes moved and what of the moving hides."""

from __future__ import annotations

from typing import NamedTuple

from amigo_local.training.memory_formula import (
    Job,
    Levers,
    adapter_parameters,
    block,
    checkpoint_bytes,
    layer_bytes,
    micro_batch_rows,
    optimizer_state,
    padded_length,
    row_bytes,
)

MEMORY_BYTES_PER_SECOND = 150e9  # of the 192 GB/s of a laptop RTX 4050, assumed
SCORED_SHARE = 0.5  # of the tokens carry a label; assumed, the demo's are 0.55
DEQUANTIZING_BYTES = 2.52  # of memory traffic a weight: 0.52 read, 2 written (the product's own read is in its FLOPS)
DECODING_BYTES = 12  # a weight of the head's table, in a few elementwise passes


class StepTime(NamedTuple):
    seconds: float
    tokens_per_second: float
    copies_hidden: float
    """Share of the time of copying that computing covers."""


def step_time(job: Job, levers: Levers, *, head_on_card: bool = False) -> StepTime:
    """All samples at full length. head_on_card: as if the whole head lay there in bf16, for comparison."""
    rows = micro_batch_rows(job, levers.micro_batch)
    per_sample = 2 if job.settings.method == "dpo" else 1
    step_tokens = job.settings.effective_batch * per_sample * padded_length(job)
    micro_batches = step_tokens / rows.tokens
    forward, backward = _layer_seconds(job, levers)
    layers, streamed = job.shape.layers, job.shape.layers - levers.resident
    copy = layer_bytes(job.shape, job.settings.quantization) / job.calibration.bytes_per_second
    # Streamed layers lie evenly among the resident ones, so that each copy has as much computing to hide behind.
    cover = layers / streamed if streamed else 0.0
    exposed = streamed * (max(0.0, copy - cover * forward) + max(0.0, copy - cover * backward))
    head, head_copy = _head_seconds(job, levers, on_card=head_on_card)
    exposed += max(0.0, head_copy - head)
    offloading = 2 * checkpoint_bytes(job, rows.tokens) / job.calibration.bytes_per_second if levers.offload else 0.0
    one = layers * (forward + backward) + exposed + head + offloading  # save_on_cpu copies among the computing
    seconds = micro_batches * one + _optimizer_seconds(job, levers)
    copying = 2 * streamed * copy + head_copy
    return StepTime(seconds, step_tokens / seconds, 1 - exposed / copying if copying else 1.0)


def _layer_seconds(job: Job, levers: Levers) -> tuple[float, float]:
    """(forward, recomputation and backward) of one layer and its adapters.

    Frozen weights cost 2 FLOP a weight and token forward, 2 backward, 2 recomputed; LoRA's 2, 4 and 2.
    """
    shape, rows, flops = job.shape, micro_batch_rows(job, levers.micro_batch), job.calibration.flops
    tokens = rows.tokens
    # A mask is a bias to the kernel, which then skips nothing.
    attention = 4 * shape.query_size * tokens * rows.width * (1.0 if rows.masks else 0.5)
    weights = shape.layer_parameters
    dequantizing = weights * DEQUANTIZING_BYTES / MEMORY_BYTES_PER_SECOND if job.settings.quantization == "nf4" else 0.0
    lora = adapter_parameters(job) / shape.layers
    again = 2 * weights * tokens + attention + 2 * lora * tokens if levers.recompute else 0.0
    if levers.recompute and levers.mlp_tile_tokens is not None and levers.mlp_tile_tokens < tokens:
        again += 2 * shape.mlp_parameters * tokens  # a tile is recomputed in the layer's recomputation
    forward = (2 * weights * tokens + attention + 2 * lora * tokens) / flops + dequantizing
    backward = (2 * weights * tokens + 2.5 * attention + 4 * lora * tokens + again) / flops
    return forward, backward + dequantizing * (2 if levers.recompute else 1)


def _head_seconds(job: Job, levers: Levers, *, on_card: bool) -> tuple[float, float]:
    """(computing, copying): logits and their pull on the hidden states are 2 FLOP a weight and scored token each."""
    shape = job.shape
    scored = SCORED_SHARE * micro_batch_rows(job, levers.micro_batch).tokens
    computing = 4 * shape.embedding_parameters * scored / job.calibration.flops
    if on_card:
        return computing, 0.0
    if block(job).weights > 1:
        computing += shape.embedding_parameters * DECODING_BYTES / MEMORY_BYTES_PER_SECOND
    return computing, shape.vocabulary * row_bytes(job) / job.calibration.bytes_per_second


def _optimizer_seconds(job: Job, levers: Levers) -> float:
    """Weights, gradients and moments read and written once; paged moments come from the host and go back at worst."""
    state = optimizer_state(job, levers.optimizer)
    touched = 12 * adapter_parameters(job) + 2 * (state.on_card + state.paged)
    return touched / MEMORY_BYTES_PER_SECOND + 2 * state.paged / job.calibration.bytes_per_second
