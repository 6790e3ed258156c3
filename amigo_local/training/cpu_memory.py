"""What training without a card takes of RAM and time: one formula, fitted to measured runs."""

from __future__ import annotations

from amigo_local.domain.memory_plan import Part
from amigo_local.domain.recipe import TrainSettings
from amigo_local.domain.shape import ModelShape
from amigo_local.domain.units import MIB
from amigo_local.training.samples import PADDED_TO

NF4_BITS = 4.127
"""Per parameter with double quantization: 4 + 8/64 + 32/(64*256), measured on bitsandbytes 0.50."""
LORA_TRAINING_BYTES = 16
"""Per LoRA parameter, f32: weight 4, gradient 4, AdamW's two moments 8."""
PROCESS_BYTES = 500 * MIB
"""RSS of Python with torch, transformers, trl and a toy model: 503 MiB measured on Linux."""
TOKENS_PER_MICRO_BATCH = 512
"""SmolLM2-135M gained nothing from larger ones (124, 146, 122 tok/s a core at 1, 2, 4 samples)."""
FLOPS_PER_CORE = 70e9
"""Effective in training SmolLM2-135M in bf16 on a 2.6 GHz Zen 4 core (145 tok/s); half without AVX512-BF16."""
RECOMPUTE_ABOVE = 1_000_000_000
"""Parameters: below, recomputing costs a third of the time to save memory that is there."""


def ram_parts(shape: ModelShape, settings: TrainSettings, length: int, micro_batch: int) -> tuple[Part, ...]:
    """Of the peak RSS of a step.

    Against SmolLM2-135M's (NF4, rank 16, two steps; tokens per micro-batch: MiB measured, MiB predicted):
    64: 1013, 1077. 256: 1374, 1496. 512: 1906, 2055. 1024: 2743, 2885. 2048: 4369, 4544. Lengths that vary, 32 steps of
    up to 384 tokens: 1648, 1775.
    """
    sequences = max(micro_batch, 2 if settings.method == "dpo" else 1)
    tokens = -(-length // PADDED_TO) * PADDED_TO * sequences
    weight_bytes = NF4_BITS / 8 if settings.quantization == "nf4" else 2.0
    embeddings = shape.embedding_parameters * (1 if shape.tied_embeddings else 2)
    process = PROCESS_BYTES
    if settings.quantization == "nf4":
        # The allocator keeps some of what the bf16 weights took while they were quantized.
        process += min(2 * shape.parameters, 512 * MIB)
    return (
        Part("process", process),
        Part("base", int(shape.layers * shape.layer_parameters * weight_bytes) + 2 * embeddings),
        Part("adapter", LORA_TRAINING_BYTES * shape.lora_parameters(settings.lora.rank, settings.lora.targets)),
        Part("activations", _activations(shape, tokens, length, sequences)),
        # 512 rows of the head: bf16 logits, f32, bf16 again
        Part("head", 12 * min(tokens, 512) * shape.vocabulary),
    )


def recomputes(parameters: int) -> bool:
    return parameters > RECOMPUTE_ABOVE


def _activations(shape: ModelShape, tokens: int, length: int, sequences: int) -> int:
    hidden, query, mlp = shape.hidden_size, shape.query_size, shape.intermediate_size
    if not recomputes(shape.parameters):
        # Autograd keeps, of one layer: norms 20H; f32 copies of LoRA inputs 20H + 4Q + 4I; attention's q, k, v and
        # output 8Q; the gated MLP 6I. Times 1.25, fitted to the RSS in `ram_parts`.
        return shape.layers * tokens * int(1.25 * (40 * hidden + 12 * query + 10 * mlp))
    # A bf16 hidden state per layer, one layer's recomputation, the attention mask, and one dequantized weight.
    checkpoints = 2 * (shape.layers + 2) * tokens * hidden
    return checkpoints + int(2 * tokens * (6.6 * mlp + 24.6 * hidden)) + 2 * sequences * length**2 + 2 * mlp * hidden


def tokens_per_second(shape: ModelShape, settings: TrainSettings, cpu_count: int) -> float:
    """Forward and the backward through frozen weights cost 2 FLOP a weight each; recomputing, 2 more.

    LoRA costs 6; the head, scored at about half of the positions, 2. One core is left to the rest.
    """
    passes = 6 if recomputes(shape.parameters) else 4
    flop = passes * shape.layers * shape.layer_parameters + 2 * shape.embedding_parameters
    flop += 6 * shape.lora_parameters(settings.lora.rank, settings.lora.targets)
    return FLOPS_PER_CORE * max(1, cpu_count - 1) / flop
