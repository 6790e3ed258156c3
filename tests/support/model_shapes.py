"""Metadata and tensor tables of well-known models from the numbers in their configs: real shapes without weights.

Names and shapes are what llama.cpp's converter writes (gguf-py/gguf/constants.py, convert_hf_to_gguf.py).
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec

from amigo_local.weights.ggml_types import TYPES_BY_NAME
from amigo_local.weights.gguf_header import GgufHeader, TensorInfo, Value


class NamedShape(msgspec.Struct, frozen=True):
    """One model's numbers. Grouped as its config has them; a flag stands for tensors that only some families have."""

    architecture: str
    layers: int
    hidden: int
    ffn: int
    heads: int
    kv_heads: int
    head_dim: int
    vocabulary: int
    context: int = 8192
    tied: bool = False
    qk_norms: bool = False
    qkv_biases: bool = False
    post_norms: bool = False
    """Gemma's norms after attention and after the MLP."""
    fused_qkv: bool = False
    fused_gate_up: bool = False
    """Phi-3's ffn_up holds the gate too, twice `ffn` rows."""
    gated: bool = True
    layer_norm: bool = False
    """Norms have biases (Falcon) rather than being RMS norms."""
    experts: int = 0
    experts_used: int = 0
    rope_factors: tuple[str, ...] = ()
    """Tensors of head_dim / 2 numbers."""
    sliding_window: int = 0


_LLAMA3 = ("rope_freqs.weight",)
NAMED_SHAPES = {
    "gemma3-270m": NamedShape(
        *("gemma3", 18, 640, 2048, 4, 1, 256, 262144, 32768), tied=True, qk_norms=True, post_norms=True
    ),
    "gemma3-1b": NamedShape(
        *("gemma3", 26, 1152, 6912, 4, 1, 256, 262144, 32768), tied=True, qk_norms=True, post_norms=True
    ),
    "gemma3-4b": NamedShape(
        *("gemma3", 34, 2560, 10240, 8, 4, 256, 262208, 131072), tied=True, qk_norms=True, post_norms=True
    ),
    "gemma3-12b": NamedShape(
        *("gemma3", 48, 3840, 15360, 16, 8, 256, 262208, 131072), tied=True, qk_norms=True, post_norms=True
    ),
    "gemma3-27b": NamedShape(
        *("gemma3", 62, 5376, 21504, 32, 16, 128, 262208, 131072), tied=True, qk_norms=True, post_norms=True
    ),
    "gemma2-9b": NamedShape(*("gemma2", 42, 3584, 14336, 16, 8, 256, 256000), tied=True, post_norms=True),
    "llama3.1-8b": NamedShape(*("llama", 32, 4096, 14336, 32, 8, 128, 128256, 131072), rope_factors=_LLAMA3),
    "llama3-70b": NamedShape("llama", 80, 8192, 28672, 64, 8, 128, 128256),
    "llama3.2-1b": NamedShape(*("llama", 16, 2048, 8192, 32, 8, 64, 128256, 131072), tied=True, rope_factors=_LLAMA3),
    "llama1-65b": NamedShape("llama", 80, 8192, 22016, 64, 64, 128, 32000, 2048),
    "mistral-7b": NamedShape("llama", 32, 4096, 14336, 32, 8, 128, 32768, 32768),
    "mixtral-8x7b": NamedShape(*("llama", 32, 4096, 14336, 32, 8, 128, 32000, 32768), experts=8, experts_used=2),
    "tinyllama-1.1b": NamedShape("llama", 22, 2048, 5632, 32, 4, 64, 32000, 2048),
    "smollm2-135m": NamedShape("llama", 30, 576, 1536, 9, 3, 64, 49152, tied=True),
    "qwen2.5-7b": NamedShape(*("qwen2", 28, 3584, 18944, 28, 4, 128, 152064, 32768), qkv_biases=True),
    "qwen2.5-72b": NamedShape(*("qwen2", 80, 8192, 29568, 64, 8, 128, 152064, 32768), qkv_biases=True),
    "qwen3-8b": NamedShape(*("qwen3", 36, 4096, 12288, 32, 8, 128, 151936, 40960), qk_norms=True),
    "qwen3-30b-a3b": NamedShape(
        *("qwen3moe", 48, 2048, 768, 32, 4, 128, 151936, 40960), qk_norms=True, experts=128, experts_used=8
    ),
    "phi3-mini": NamedShape(
        *("phi3", 32, 3072, 8192, 32, 32, 96, 32064, 131072),
        fused_qkv=True,
        fused_gate_up=True,
        rope_factors=("rope_factors_long.weight", "rope_factors_short.weight"),
        sliding_window=2047,
    ),
    "falcon-40b": NamedShape(
        *("falcon", 60, 8192, 32768, 128, 8, 64, 65024, 2048), fused_qkv=True, gated=False, layer_norm=True
    ),
}


def named_model(name: str, weight_type: str = "F16") -> tuple[dict[str, Value], list[TensorInfo]]:
    """(metadata, tensors) of one of NAMED_SHAPES: matrices in `weight_type`, vectors and expert gates in F32.

    The metadata has no tokenizer; offsets are zero.
    """
    return model_of(NAMED_SHAPES[name], weight_type)


def model_of(shape: NamedShape, weight_type: str = "F16") -> tuple[dict[str, Value], list[TensorInfo]]:
    metadata: dict[str, Value] = {
        "general.architecture": shape.architecture,
        **{f"{shape.architecture}.{key}": value for key, value in _metadata(shape).items()},
    }
    tensors = [
        TensorInfo(name, dimensions, TYPES_BY_NAME["F32" if _in_f32(name, dimensions) else weight_type].id, 0)
        for name, dimensions in _tensors(shape)
    ]
    return metadata, tensors


def header_of(metadata: dict[str, Value], tensors: list[TensorInfo]) -> GgufHeader:
    """A header as if it had been read from a file, which there is not."""
    return GgufHeader(Path("no-such-file.gguf"), 3, 0, 32, 0, metadata, {}, tuple(tensors))


def _in_f32(name: str, dimensions: tuple[int, ...]) -> bool:
    return len(dimensions) == 1 or "ffn_gate_inp" in name


def _metadata(shape: NamedShape) -> dict[str, Any]:
    fields: dict[str, Any] = {
        "vocab_size": shape.vocabulary,
        "context_length": shape.context,
        "embedding_length": shape.hidden,
        "block_count": shape.layers,
        "feed_forward_length": shape.ffn,
        "attention.head_count": shape.heads,
        "attention.head_count_kv": shape.kv_heads,
        "attention.key_length": shape.head_dim,
        "attention.value_length": shape.head_dim,
        "rope.dimension_count": shape.head_dim,
        "rope.freq_base": 10000.0,
    }
    fields["attention.layer_norm_epsilon" if shape.layer_norm else "attention.layer_norm_rms_epsilon"] = 1e-5
    if shape.experts:
        fields |= {"expert_count": shape.experts, "expert_used_count": shape.experts_used}
        fields["expert_feed_forward_length"] = shape.ffn
    window = shape.sliding_window or (1024 if shape.architecture.startswith("gemma") else 0)
    if window:
        fields["attention.sliding_window"] = window
    return fields


def _tensors(shape: NamedShape) -> Iterator[tuple[str, tuple[int, ...]]]:
    """(name, dimensions in GGML order), in the converter's order."""

    def norm(name: str, size: int) -> Iterator[tuple[str, tuple[int, ...]]]:
        yield f"{name}.weight", (size,)
        if shape.layer_norm:
            yield f"{name}.bias", (size,)

    yield "token_embd.weight", (shape.hidden, shape.vocabulary)
    for name in shape.rope_factors:
        yield name, (shape.head_dim // 2,)
    for layer in range(shape.layers):
        block = f"blk.{layer}"
        yield from norm(f"{block}.attn_norm", shape.hidden)
        yield from _attention(shape, block)
        if shape.post_norms:
            yield f"{block}.post_attention_norm.weight", (shape.hidden,)
            yield f"{block}.post_ffw_norm.weight", (shape.hidden,)
        if shape.architecture != "falcon":
            yield f"{block}.ffn_norm.weight", (shape.hidden,)
        yield from _feed_forward(shape, block)
    yield from norm("output_norm", shape.hidden)
    if not shape.tied:
        yield "output.weight", (shape.hidden, shape.vocabulary)


def _attention(shape: NamedShape, block: str) -> Iterator[tuple[str, tuple[int, ...]]]:
    queries, keys = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    if shape.fused_qkv:
        yield f"{block}.attn_qkv.weight", (shape.hidden, queries + 2 * keys)
    else:
        for part, rows in (("q", queries), ("k", keys), ("v", keys)):
            yield f"{block}.attn_{part}.weight", (shape.hidden, rows)
            if shape.qkv_biases:
                yield f"{block}.attn_{part}.bias", (rows,)
    yield f"{block}.attn_output.weight", (queries, shape.hidden)
    if shape.qk_norms:
        yield f"{block}.attn_q_norm.weight", (shape.head_dim,)
        yield f"{block}.attn_k_norm.weight", (shape.head_dim,)


def _feed_forward(shape: NamedShape, block: str) -> Iterator[tuple[str, tuple[int, ...]]]:
    suffix, experts = ("_exps", (shape.experts,)) if shape.experts else ("", ())
    if shape.experts:
        yield f"{block}.ffn_gate_inp.weight", (shape.hidden, shape.experts)
    if shape.gated and not shape.fused_gate_up:
        yield f"{block}.ffn_gate{suffix}.weight", (shape.hidden, shape.ffn, *experts)
    rows = 2 * shape.ffn if shape.fused_gate_up else shape.ffn
    yield f"{block}.ffn_up{suffix}.weight", (shape.hidden, rows, *experts)
    yield f"{block}.ffn_down{suffix}.weight", (shape.ffn, shape.hidden, *experts)
