"""What QLoRA training needs (VRAM, RAM, disk, time), from a model's dimensions alone."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal, NamedTuple

import msgspec

from amigo_local.domain.errors import InputError
from amigo_local.domain.machine import Machine
from amigo_local.domain.plan import Batching, Needs
from amigo_local.domain.recipe import TrainSettings
from amigo_local.domain.shape import ModelShape
from amigo_local.domain.units import GIB, MIB, format_size
from amigo_local.training.samples import PADDED_TO

NF4_BITS = 4.127
"""Per parameter with double quantization: 4 + 8/64 + 32/(64*256), measured on bitsandbytes 0.50."""
LORA_TRAINING_BYTES = 16
"""Per LoRA parameter, f32: weight 4, gradient 4, AdamW's two moments 8."""
CUDA_CONTEXT_BYTES = 350 * MIB  # assumed for a laptop card; not measured yet
CUDA_SLACK = 1.06  # allocator fragmentation, assumed
PROCESS_BYTES = 500 * MIB
"""RSS of Python with torch, transformers, trl and a toy model: 503 MiB measured on Linux."""
CUDA_PROCESS_BYTES = 2560 * MIB  # the same with CUDA's libraries loaded; assumed
USABLE_SHARE = 0.93
"""Of what is free: 5.6 of a 6 GiB card, the rest being the desktop's."""

CPU_TOKENS_PER_MICRO_BATCH = 512
"""SmolLM2-135M gained nothing from larger ones (124, 146, 122 tok/s a core at 1, 2, 4 samples)."""
CUDA_TOKENS_PER_MICRO_BATCH = 4096
CPU_FLOPS_PER_CORE = 70e9
"""Effective in training SmolLM2-135M in bf16 on a 2.6 GHz Zen 4 core (145 tok/s); half without AVX512-BF16."""
CUDA_FLOPS = 12e12
"""Effective on a laptop RTX 4050, assumed; larger cards only finish sooner."""
CPU_ACTIVATION_CHECKPOINTING_ABOVE = 1_000_000_000
"""Parameters: below, recomputing costs a third of the time to save memory that is there."""


class Split(NamedTuple):
    """Where the bytes go at the peak. Sums to `total` (with slack on CUDA)."""

    weights: int
    adapter: int
    activations: int
    head: int
    process: int

    @property
    def total(self) -> int:
        return sum(self)


def uses_activation_checkpointing(parameters: int, on_gpu: bool) -> bool:
    return on_gpu or parameters > CPU_ACTIVATION_CHECKPOINTING_ABOVE


def estimate_training(
    shape: ModelShape,
    settings: TrainSettings,
    max_length_tokens: int,
    machine: Machine,
    *,
    samples: int | None = None,
    mean_length_tokens: float | None = None,
) -> tuple[Needs, Batching]:
    """Predicted peaks and the micro-batch that fits, the smallest need when none does.

    Seconds are predicted when `samples` is known or settings.max_steps bounds the run; without
    `mean_length_tokens` every sample counts as max_length_tokens long, an upper bound.
    Raises InputError when settings.micro_batch doesn't divide the effective batch.
    """
    on_gpu = machine.gpu_name is not None
    batching = _batching(shape, settings, max_length_tokens, machine)
    split = peak(shape, settings, max_length_tokens, batching.micro_batch, on_gpu)
    lora = shape.lora_parameters(settings.lora.rank)
    checkpoint_bytes = lora * 12  # f32 adapter and AdamW's two moments
    needs = Needs(
        vram_bytes=split.total if on_gpu else 0,
        # On a GPU the checkpoint is read tensor by tensor: the largest, the embedding, twice.
        ram_bytes=CUDA_PROCESS_BYTES + 4 * shape.embedding_parameters if on_gpu else split.total,
        disk_bytes=(settings.keep_checkpoints + 1) * checkpoint_bytes + 4 * lora + 16 * MIB,
        seconds=_seconds(shape, settings, max_length_tokens, machine, samples, mean_length_tokens),
    )
    return needs, batching


def check_fits(shape: ModelShape, settings: TrainSettings, max_length_tokens: int, machine: Machine) -> None:
    """Raises InputError naming the resource that binds, and the nearest change that fits."""
    needs, batching = estimate_training(shape, settings, max_length_tokens, machine)
    for resource, needed, free in _resources(needs, machine):
        if needed > free:
            raise InputError(
                f"{resource}: training needs {format_size(needed)}, there are {format_size(free)} "
                f"({shape.architecture}, {shape.parameters / 1e9:.1f} B parameters, {settings.quantization}, "
                f"{batching.micro_batch} x {max_length_tokens} tokens at once)",
                _nearest(shape, settings, max_length_tokens, machine, resource, needed),
            )


def peak(shape: ModelShape, settings: TrainSettings, length: int, micro_batch: int, on_gpu: bool) -> Split:
    """Bytes at the peak of a step: of VRAM on a GPU, of RSS on CPU.

    CPU, against SmolLM2-135M's peak RSS (NF4, rank 16, two steps; tokens per micro-batch: MiB measured,
    MiB predicted): 64: 1013, 1077. 256: 1374, 1496. 512: 1906, 2055. 1024: 2743, 2885. 2048: 4369, 4544.
    Lengths that vary, 32 steps of up to 384 tokens: 1648, 1775. CUDA: formulas of the layer-streaming
    prototype, at most 14.5 % over and never under FakeTensor dry runs; no card has been measured.
    """
    tokens = -(-length // PADDED_TO) * PADDED_TO * micro_batch
    weight_bytes = NF4_BITS / 8 if settings.quantization == "nf4" else 2.0
    embeddings = shape.embedding_parameters * (1 if shape.tied_embeddings else 2)
    weights = int(shape.layers * shape.layer_parameters * weight_bytes) + 2 * embeddings
    adapter = LORA_TRAINING_BYTES * shape.lora_parameters(settings.lora.rank)
    if on_gpu:
        activations = _checkpointed_activations(shape, tokens, length, micro_batch)
        # TRL's fused head: one tile of 4096 tokens x 32768 logits in f32, twice; hidden states and their gradient.
        head = 8 * min(tokens, 4096) * min(shape.vocabulary, 32768) + 6 * tokens * shape.hidden_size
        working = max(activations, head)  # the two are never alive together
        slack = int((weights + adapter + working) * (CUDA_SLACK - 1))
        return Split(weights, adapter, working - min(head, working) + slack, min(head, working), CUDA_CONTEXT_BYTES)
    if uses_activation_checkpointing(shape.parameters, on_gpu):
        activations = _checkpointed_activations(shape, tokens, length, micro_batch)
    else:
        activations = shape.layers * tokens * _saved_bytes_per_token(shape)
    head = 12 * min(tokens, 512) * shape.vocabulary  # head.ROWS_PER_TILE rows: bf16 logits, f32, bf16 again
    process = PROCESS_BYTES
    if settings.quantization == "nf4":
        # The allocator keeps some of what the bf16 weights took while they were quantized.
        process += min(2 * shape.parameters, 512 * MIB)
    return Split(weights, adapter, activations, head, process)


def _saved_bytes_per_token(shape: ModelShape) -> int:
    """What autograd keeps of one decoder layer: norms 20H; f32 copies of LoRA inputs 20H + 4Q + 4I;
    attention's q, k, v and output 8Q; the gated MLP 6I. Times 1.25, fitted to the RSS in `peak`."""
    hidden, query, mlp = shape.hidden_size, shape.heads * shape.head_dim, shape.intermediate_size
    return int(1.25 * (40 * hidden + 12 * query + 10 * mlp))


def _checkpointed_activations(shape: ModelShape, tokens: int, length: int, micro_batch: int) -> int:
    """A bf16 hidden state per layer, and one layer's recomputation: 2T(6.6I + 24.6H), the attention
    mask, and one dequantized weight (fitted on FakeTensor runs of Gemma 3 1B to 12B)."""
    hidden, mlp = shape.hidden_size, shape.intermediate_size
    checkpoints = 2 * (shape.layers + 2) * tokens * hidden
    work = int(2 * tokens * (6.6 * mlp + 24.6 * hidden))
    return checkpoints + work + 2 * micro_batch * length**2 + 2 * mlp * hidden


def _batching(shape: ModelShape, settings: TrainSettings, length: int, machine: Machine) -> Batching:
    batch, wanted = settings.effective_batch, settings.micro_batch
    if wanted is not None:
        if batch % wanted:
            raise InputError(
                f"train.micro_batch is {wanted}, which does not divide train.effective_batch of {batch}",
                f"use one of: {', '.join(str(d) for d in _divisors(batch))}",
            )
        return Batching(micro_batch=wanted, accumulation=batch // wanted)
    on_gpu = machine.gpu_name is not None
    most_tokens = CUDA_TOKENS_PER_MICRO_BATCH if on_gpu else CPU_TOKENS_PER_MICRO_BATCH
    budget = _budget(machine, "VRAM" if on_gpu else "RAM")
    micro = 1
    for divisor in _divisors(batch):
        enough = divisor * length <= most_tokens
        if enough and peak(shape, settings, length, divisor, on_gpu).total <= budget:
            micro = divisor
    return Batching(micro_batch=micro, accumulation=batch // micro)


def _divisors(number: int) -> list[int]:
    return [d for d in range(1, number + 1) if number % d == 0]


Resource = Literal["VRAM", "RAM", "disk"]


def _budget(machine: Machine, resource: Resource) -> int:
    if resource == "disk":
        return machine.disk_free_bytes
    free = machine.ram_available_bytes
    if resource == "VRAM":
        free = machine.vram_free_bytes if machine.vram_free_bytes is not None else machine.vram_total_bytes or 0
    return int(USABLE_SHARE * free)


def _resources(needs: Needs, machine: Machine) -> Iterator[tuple[Resource, int, int]]:
    if machine.gpu_name is not None:
        yield "VRAM", needs.vram_bytes, _budget(machine, "VRAM")
    yield "RAM", needs.ram_bytes, _budget(machine, "RAM")
    yield "disk", needs.disk_bytes, _budget(machine, "disk")


def _fits(shape: ModelShape, settings: TrainSettings, length: int, machine: Machine) -> bool:
    needs, _ = estimate_training(shape, settings, length, machine)
    return all(needed <= free for _, needed, free in _resources(needs, machine))


def _nearest(
    shape: ModelShape, settings: TrainSettings, length: int, machine: Machine, resource: Resource, needed: int
) -> str:
    """The mildest change that fits: a smaller micro-batch, NF4, shorter samples, another machine."""
    if resource == "disk":
        return f"free {format_size(needed - machine.disk_free_bytes)} of disk, or give another --home"
    changes: list[tuple[str, TrainSettings, int]] = []
    single = msgspec.structs.replace(settings, micro_batch=1)
    if (settings.micro_batch or 1) > 1:
        changes.append(("train.micro_batch=1", single, length))
    if settings.quantization == "none":
        single = msgspec.structs.replace(single, quantization="nf4")
        changes.append(("train.quantization=nf4", single, length))
    shorter = length // 2
    while shorter >= 128:
        changes.append((f"data.max_length_tokens={shorter}", single, shorter))
        shorter //= 2
    for change, changed, tokens in changes:
        if _fits(shape, changed, tokens, machine):
            return f"--set {change} would fit"
    if resource == "RAM":
        return f"no shorter length fits: take a smaller model, or a machine with {format_size(needed / USABLE_SHARE)}"
    cards = [size for size in (8, 12, 16, 24, 40, 48, 80, 141, 192) if size * GIB * USABLE_SHARE >= needed]
    card = f"a rented GPU with {cards[0]} GiB" if cards else "several GPUs"
    return f"no shorter length fits this card: take {card}, or a smaller model"


def _seconds(
    shape: ModelShape,
    settings: TrainSettings,
    length: int,
    machine: Machine,
    samples: int | None,
    mean_length: float | None,
) -> float | None:
    """Tokens over tokens per second, from multiply-adds and an effective FLOPS (the constants above)."""
    trained = None if samples is None else max(settings.effective_batch, settings.epochs * samples)
    if settings.max_steps is not None:
        bounded = settings.max_steps * settings.effective_batch
        trained = bounded if trained is None else min(trained, bounded)
    if trained is None:
        return None
    tokens = trained * (mean_length or length)
    return tokens / tokens_per_second(shape, settings.lora.rank, machine)


def tokens_per_second(shape: ModelShape, rank: int, machine: Machine) -> float:
    """Forward and the backward through frozen weights cost 2 FLOP a weight each; recomputing, 2 more.

    LoRA costs 6; the head, scored at about half of the positions, 2.
    """
    on_gpu = machine.gpu_name is not None
    passes = 6 if uses_activation_checkpointing(shape.parameters, on_gpu) else 4
    flop = passes * shape.layers * shape.layer_parameters + 6 * shape.lora_parameters(rank)
    flop += 2 * shape.embedding_parameters
    return (CUDA_FLOPS if on_gpu else CPU_FLOPS_PER_CORE * max(1, machine.cpu_count - 1)) / flop
