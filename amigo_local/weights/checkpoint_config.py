"""The parts of config.json that every family shares, read from GGUF metadata."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Any

from amigo_local.domain.errors import InputError
from amigo_local.domain.recipe import Dtype
from amigo_local.weights.gguf_cursor import described
from amigo_local.weights.gguf_header import GgufHeader, Scalar, model_shape

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
    # llama.cpp passes over a bad id as well (llama_vocab::impl::load).
    rows = header.tensor("token_embd.weight").dimensions[-1]
    return value if type(value) is int and 0 <= value < min(header.length("tokenizer.ggml.tokens"), rows) else None


def base_config(header: GgufHeader, model_type: str, class_name: str) -> dict[str, Any]:
    """Sizes, epsilon and token ids.

    Raises InputError when a size is missing or differs between layers, and for heads that the architecture's class
    in transformers can't have.
    """
    _refuse_uneven_layers(header)
    shape = model_shape(header)
    epsilon = header.of_architecture("attention.layer_norm_rms_epsilon")
    if not isinstance(epsilon, float):
        raise InputError(
            f"{header.path}: {header.architecture}.attention.layer_norm_rms_epsilon is missing",
            "download or export the file again",
        )
    refuse(header, "attention.value_length", shape.head_dim, f"as key_length {shape.head_dim}")
    refuse(header, "attention.causal", True, "a model that sees no later tokens")
    return {
        "architectures": [class_name],
        "model_type": model_type,
        "hidden_size": shape.hidden_size,
        "intermediate_size": shape.intermediate_size,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads,
        "head_dim": shape.head_dim,
        "rms_norm_eps": shortest(header.real("attention.layer_norm_rms_epsilon")),
        "max_position_embeddings": shape.context_length,
        "vocab_size": shape.vocabulary,
        "tie_word_embeddings": shape.tied_embeddings,
        "use_cache": True,
        "bos_token_id": token_id(header, "bos"),
        "eos_token_id": token_id(header, "eos"),
        "pad_token_id": token_id(header, "padding"),
    }


def refuse(header: GgufHeader, key: str, plain: Scalar, expected: str) -> None:
    """Raises InputError when `<architecture>.<key>` is there and isn't `plain`: nothing in the config says it."""
    found = header.of_architecture(key, plain)
    if found != plain:
        raise InputError(
            f"{header.path}: {header.architecture}.{key} is {described(found)}, expected {expected}",
            "this variant of the architecture isn't supported; take another base",
        )


def _refuse_uneven_layers(header: GgufHeader) -> None:
    for key in ("attention.head_count", "attention.head_count_kv", "feed_forward_length"):
        values = header.list_of(int, f"{header.architecture}.{key}")
        if len(set(values)) > 1:
            raise InputError(
                f"{header.path}: {header.architecture}.{key} differs between layers: {list(values)[:8]}",
                "models whose layers have different sizes aren't supported; take another base",
            )


def rope_parameters(header: GgufHeader, *, rotated: int | None = None) -> dict[str, Any]:
    """transformers' `rope_parameters` for plain, linear and yarn rotary embeddings.

    `rotated`: how many of a head's dimensions are rotated; None: all. Raises InputError for a kind of scaling that
    isn't mapped: a wrong rotation would only show on long texts.
    """
    head_dim = model_shape(header).head_dim if rotated is None else rotated
    refuse(header, "rope.dimension_count", head_dim, f"the head's {head_dim}")
    settings: dict[str, Any] = {
        "rope_theta": shortest(header.real("rope.freq_base", 10000.0, above=0)),
        "rope_type": "default",
    }
    # llama.cpp's default for files from before 2024, which state the factor alone.
    kind = header.of_architecture("rope.scaling.type", "linear")
    factor = header.real("rope.scaling.factor", header.real("rope.scale_linear", 1.0))
    if kind not in ("none", "linear", "yarn"):
        raise InputError(
            f"{header.path}: rotary scaling {described(kind)} is not supported, only none, linear, yarn and Llama 3's",
            "take a base without it",
        )
    refuse(header, "rope.scaling.attn_factor", 1.0, "1.0")
    if kind == "none" or factor in (0.0, 1.0):
        return settings
    settings |= {"rope_type": kind, "factor": shortest(factor)}
    return settings | _yarn(header) if kind == "yarn" else settings


def _yarn(header: GgufHeader) -> dict[str, Any]:
    """What TextModel.set_gguf_parameters of llama.cpp's conversion/base.py wrote, back in transformers' words."""
    if header.real("rope.scaling.yarn_ext_factor", -1.0) >= 0:  # negative: as if it weren't there
        refuse(header, "rope.scaling.yarn_ext_factor", 1.0, "1.0, transformers has no other")
    original = header.count("rope.scaling.original_context_length", header.context_length)
    settings: dict[str, Any] = {"original_max_position_embeddings": original}
    words = {"yarn_attn_factor": "attention_factor", "yarn_beta_fast": "beta_fast", "yarn_beta_slow": "beta_slow"}
    for key, name in words.items():
        if header.of_architecture(f"rope.scaling.{key}") is not None:
            settings[name] = shortest(header.real(f"rope.scaling.{key}"))
    # Mistral's; llama.cpp takes mscale as 1 beside it (llama_context in llama-context.cpp).
    log_multiplier = header.real("rope.scaling.yarn_log_multiplier", 0.0)
    if log_multiplier:
        settings |= {"mscale": 1.0, "mscale_all_dim": shortest(log_multiplier)}
    return settings


def layer_types(header: GgufHeader, layers: int, default_period: int) -> list[str]:
    """Which layers attend to a sliding window only: the file's list or period, else all but the last of a period.

    llama_model_base::load_swa_pattern and llama_hparams::set_swa_pattern of llama.cpp; a period of 0 is all of them.
    Raises InputError when the list is of another length.
    """
    key = "attention.sliding_window_pattern"
    period = header.of_architecture(key, default_period)
    flags: Sequence[Scalar]
    if type(period) is int:
        flags = [period == 0 or (i + 1) % period != 0 for i in range(layers)]
    else:
        flags = header.array(f"{header.architecture}.{key}")
    if len(flags) != layers:
        raise InputError(
            f"{header.path}: the sliding-window pattern has {len(flags)} entries for {layers} layers",
            "download or export the file again",
        )
    return ["sliding_attention" if is_local else "full_attention" for is_local in flags]


def generation_config(header: GgufHeader, stop_ids: list[int]) -> dict[str, Any]:
    """generation_config.json: greedy and sampling settings are left to the caller, stops are not."""
    settings: dict[str, Any] = {"bos_token_id": token_id(header, "bos"), "pad_token_id": token_id(header, "padding")}
    settings["eos_token_id"] = stop_ids[0] if len(stop_ids) == 1 else stop_ids or None
    return {key: value for key, value in settings.items() if value is not None}
