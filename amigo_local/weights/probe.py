"""What two models are compared on: prompts, and the positions in them whose next token is predicted."""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from amigo_local.weights.gguf_header import GgufHeader

MAX_TOKENS = 64
# What one side's logits may take: all 64 positions of 8 prompts at 49152 tokens, 16 of each at Gemma's 262144.
LOGIT_BYTES = 128 << 20
_TORCH_BYTES = 768 << 20  # torch and transformers themselves, and the activations of 8 prompts


class Probe(msgspec.Struct, frozen=True):
    """One prompt as token ids, and the ascending positions that count."""

    tokens: tuple[int, ...]
    positions: tuple[int, ...]


def probes(prompts: Iterable[list[int]], vocabulary: int) -> list[Probe]:
    """Prompts cut to 64 tokens, empty ones left out, with as many positions as keep one side's logits small."""
    cut = [tuple(tokens[:MAX_TOKENS]) for tokens in prompts if tokens]
    each = max(1, LOGIT_BYTES // (4 * vocabulary * max(1, len(cut))))
    return [Probe(tokens, _spread(len(tokens), each)) for tokens in cut]


def _spread(length: int, count: int) -> tuple[int, ...]:
    """`count` of `length` positions at even distances, the last one among them."""
    count = min(count, length)
    return tuple((i + 1) * length // count - 1 for i in range(count))


def comparison_bytes(header: GgufHeader) -> int:
    """RAM at the peak of comparing torch with llama.cpp, mapped files apart: a layer in float32 and four logits."""
    layers: dict[str, int] = {}
    for tensor in header.tensors:
        if tensor.name.startswith("blk."):
            layer = tensor.name.split(".")[1]
            layers[layer] = layers.get(layer, 0) + 4 * tensor.elements
    return comparison_bytes_of_layer(max(layers.values(), default=0))


def comparison_bytes_of_layer(nbytes: int) -> int:
    """The same for the largest layer's bytes in float32."""
    return nbytes + 4 * LOGIT_BYTES + _TORCH_BYTES
