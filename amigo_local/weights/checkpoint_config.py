"""The parts of config.json that every family shares, read from GGUF metadata."""

from __future__ import annotations

import struct
from typing import Any

from amigo_local.domain.errors import InputError
from amigo_local.domain.recipe import Dtype
from amigo_local.weights.gguf_header import GgufHeader, model_shape

TORCH_DTYPES: dict[Dtype, str] = {"bf16": "bfloat16", "f16": "float16", "f32": "float32"}


def shortest(value: float) -> float:
    """The shortest decimal that is the same float32: 1e-06 where the file's four bytes read 9.99999997e-07."""
    for digits in range(1, 10):
        short = float(f"{value:.{digits}g}")
        if struct.pack("<f", short) == struct.pack("<f", value):
            return short
    return value


def token_id(header: GgufHeader, which: str) -> int | None:
    """`which` is llama.cpp's word: bos, eos, eot, unknown, padding."""
    value = header.metadata.get(f"tokenizer.ggml.{which}_token_id")
    return value if isinstance(value, int) and value >= 0 else None


def base_config(header: GgufHeader, model_type: str, class_name: str) -> dict[str, Any]:
    """Sizes, epsilon and token ids. Raises InputError when a size is missing."""
    shape = model_shape(header)
    epsilon = header.of_architecture("attention.layer_norm_rms_epsilon")
    if not isinstance(epsilon, float):
        raise InputError(
            f"{header.path}: {header.architecture}.attention.layer_norm_rms_epsilon is missing",
            "download or export the file again",
        )
    return {
        "architectures": [class_name],
        "model_type": model_type,
        "hidden_size": shape.hidden_size,
        "intermediate_size": shape.intermediate_size,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads,
        "rms_norm_eps": shortest(epsilon),
        "max_position_embeddings": shape.context_length,
        "vocab_size": shape.vocabulary,
        "tie_word_embeddings": shape.tied_embeddings,
        "use_cache": True,
        "bos_token_id": token_id(header, "bos"),
        "eos_token_id": token_id(header, "eos"),
        "pad_token_id": token_id(header, "padding"),
    }


def rope_parameters(header: GgufHeader) -> dict[str, Any]:
    """transformers' `rope_parameters` for plain and linearly scaled rotary embeddings.

    Raises InputError for a kind of scaling that isn't mapped: a wrong rotation would only show on long texts.
    """
    settings: dict[str, Any] = {
        "rope_theta": shortest(header.of_architecture("rope.freq_base", 10000.0)),
        "rope_type": "default",
    }
    kind = header.of_architecture("rope.scaling.type", "none")
    # Before 2024 converters wrote the factor alone, which llama.cpp takes as linear.
    factor = header.of_architecture("rope.scaling.factor", header.of_architecture("rope.scale_linear", 1.0))
    if kind == "none" or factor in (0.0, 1.0):
        return settings
    if kind != "linear":
        raise InputError(
            f"{header.path}: rotary scaling {kind!r} is not supported, only none, linear and Llama 3's",
            "take a base without it",
        )
    return settings | {"rope_type": "linear", "factor": shortest(factor)}


def generation_config(header: GgufHeader, stop_ids: list[int]) -> dict[str, Any]:
    """generation_config.json: greedy and sampling settings are left to the caller, stops are not."""
    settings: dict[str, Any] = {"bos_token_id": token_id(header, "bos"), "pad_token_id": token_id(header, "padding")}
    settings["eos_token_id"] = stop_ids[0] if len(stop_ids) == 1 else stop_ids or None
    return {key: value for key, value in settings.items() if value is not None}
