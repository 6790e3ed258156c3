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
PROCESS_BYTES = 540 * MIB
"""RSS of Python with torch, transformers, trl and a toy model: 503 MiB measured on Linux, and what fits `ram_parts`."""
KEPT_DECODED_BYTES = 512 * MIB  # streamed_base.KEEP_DECODED_BYTES
TABLE_BYTES = 17 / 16  # a weight of the embedding in the source, at most: Q8_0
HEAD_BYTES = 32 * MIB  # tiled_head, measured at 49,152 and 262,208 rows
TOKENS_PER_MICRO_BATCH = 512
"""SmolLM2-135M gained nothing from larger ones (124, 146, 122 tok/s a core at 1, 2, 4 samples)."""
FLOPS_PER_CORE = 70e9
"""Effective in training SmolLM2-135M in bf16 on a 2.6 GHz Zen 4 core (145 tok/s); half without AVX512-BF16."""
RECOMPUTE_ABOVE = 1_000_000_000
"""Parameters: below, recomputing costs a third of the time to save memory that is there."""


def ram_parts(shape: ModelShape, settings: TrainSettings, length: int, micro_batch: int) -> tuple[Part, ...]:
    """Of the peak RSS of a step.

    Measured with SmolLM2-135M from its store, rank 16, two steps (MiB): 853 with 64 tokens at once, 1139 with 256, 1568
    with 2 x 256 packed, 2459 with 4 x 256, 4319 with 8 x 256, 2372 with 1 x 1024; predicted are 3 to 5 % more.
    """
    sequences = max(micro_batch, 2 if settings.method == "dpo" else 1)
    tokens = -(-length // PADDED_TO) * PADDED_TO * sequences
    weight_bytes = NF4_BITS / 8 if settings.quantization == "nf4" else 2.0
    embeddings = shape.embedding_parameters * (1 if shape.tied_embeddings else 2)
    tables = 2 * embeddings
    if settings.quantization == "nf4":
        # Mapped as it is in the source, and the head decoded where that is little.
        head = 2 * shape.embedding_parameters
        tables = int(TABLE_BYTES * embeddings) + (head if head <= KEPT_DECODED_BYTES else 0)
    packed = settings.packing and sequences > 1
    return (
        Part("process", PROCESS_BYTES),
        Part("base", int(shape.layers * shape.layer_parameters * weight_bytes) + tables),
        Part("adapter", LORA_TRAINING_BYTES * shape.lora_parameters(settings.lora.rank, settings.lora.targets)),
        Part("activations", _activations(shape, tokens, length, sequences, packed)),
        Part("head", HEAD_BYTES + 6 * tokens * shape.hidden_size),
    )


def recomputes(parameters: int) -> bool:
    return parameters > RECOMPUTE_ABOVE


def _activations(shape: ModelShape, tokens: int, length: int, sequences: int, packed: bool) -> int:
    hidden, query, mlp = shape.hidden_size, shape.query_size, shape.intermediate_size
    if not recomputes(shape.parameters):
        # Autograd keeps, of one layer: norms 20H; f32 copies of LoRA inputs 20H + 4Q + 4I; attention's q, k, v and
        # output 8Q; the gated MLP 6I. Times 1.25, fitted to the RSS in `ram_parts`.
        # Each layer keeps a packed row's mask in its own dtype.
        masks = 2 * shape.layers * tokens**2 if packed else 0
        return shape.layers * tokens * int(1.25 * (40 * hidden + 12 * query + 10 * mlp)) + masks
    # A bf16 hidden state per layer, one layer's recomputation, the attention mask, and one dequantized weight.
    masks = 2 * (tokens**2 if packed else sequences * length**2)
    checkpoints = 2 * (shape.layers + 2) * tokens * hidden
    return checkpoints + int(2 * tokens * (6.6 * mlp + 24.6 * hidden)) + masks + 2 * mlp * hidden


def tokens_per_second(shape: ModelShape, settings: TrainSettings, cpu_count: int) -> float:
    """Forward and the backward through frozen weights cost 2 FLOP a weight each; recomputing, 2 more.

    LoRA costs 6; the head, scored at about half of the positions, 2. One core is left to the rest.
    """
    passes = 6 if recomputes(shape.parameters) else 4
    flop = passes * shape.layers * shape.layer_parameters + 2 * shape.embedding_parameters
    flop += 6 * shape.lora_parameters(settings.lora.rank, settings.lora.targets)
    return FLOPS_PER_CORE * max(1, cpu_count - 1) / flop
