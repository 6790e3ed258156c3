"""phi3 (Phi-3, Phi-3.5, Phi-4 and Phi-4-mini) as transformers' Phi3ForCausalLM."""

from __future__ import annotations

import math
from typing import Any

from amigo_local.domain.errors import InputError
from amigo_local.weights.architecture import Architecture
from amigo_local.weights.checkpoint_config import base_config, rope_parameters, shortest
from amigo_local.weights.gguf_header import GgufHeader

_LONG, _SHORT = "rope_factors_long.weight", "rope_factors_short.weight"


def config(header: GgufHeader) -> dict[str, Any]:
    settings = base_config(header, "phi3", "Phi3ForCausalLM")
    context = settings["max_position_embeddings"]
    original = header.count("rope.scaling.original_context_length", context)
    head_dim = settings.pop("head_dim")  # always hidden_size // num_attention_heads in this class
    rotated = header.count("rope.dimension_count", head_dim)
    share = rotated / head_dim
    if int(head_dim * share) != rotated or head_dim * settings["num_attention_heads"] != settings["hidden_size"]:
        raise InputError(
            f"{header.path}: heads of {head_dim} dimensions, {rotated} of them rotated, are none of Phi3ForCausalLM's",
            "this variant of the architecture isn't supported; take another base",
        )
    names = header.tensor_names
    if _LONG in names or _SHORT in names:
        rope = _longrope(header, context, original)
    else:
        rope = rope_parameters(header, rotated=rotated)
        if rope["rope_type"] != "default":
            raise InputError(
                f"{header.path}: rotary scaling {rope['rope_type']!r} is not supported for phi3, only longrope",
                "take a base without it",
            )
    return settings | {
        "hidden_act": "silu",
        # 0 is the converter's word for none. llama.cpp attends without the window, transformers with it.
        "sliding_window": header.count("attention.sliding_window", 0, least=0) or None,
        "original_max_position_embeddings": original,
        "rope_parameters": rope | {"partial_rotary_factor": share},
    }


def _longrope(header: GgufHeader, context: int, original: int) -> dict[str, Any]:
    """The two tables that Phi3MiniModel.generate_extra_tensors of llama.cpp's conversion/phi.py wrote."""
    from amigo_local.weights.tensor_rows import read_vector  # numpy: only where the tables are there

    settings: dict[str, Any] = {
        "rope_theta": shortest(header.real("rope.freq_base", 10000.0, above=0)),
        "rope_type": "longrope",
        "long_factor": [shortest(float(value)) for value in read_vector(header, _LONG)],
        "short_factor": [shortest(float(value)) for value in read_vector(header, _SHORT)],
        "original_max_position_embeddings": original,
    }
    # transformers computes the factor of queries and keys from the two lengths unless it is stated.
    scale = context / original
    implied = math.sqrt(1 + math.log(scale) / math.log(original)) if scale > 1 < original else 1.0
    stated = header.real("rope.scaling.attn_factor", 1.0)
    if not math.isclose(stated, implied, rel_tol=1e-6):
        settings["attention_factor"] = shortest(stated)
    return settings


ARCHITECTURE = Architecture(
    blocks={
        "attn_norm": "input_layernorm",
        "attn_qkv": "self_attn.qkv_proj",
        "attn_output": "self_attn.o_proj",
        "ffn_norm": "post_attention_layernorm",
        "ffn_up": "mlp.gate_up_proj",
        "ffn_down": "mlp.down_proj",
    },
    config=config,
    recomputed=frozenset({_LONG, _SHORT}),
)
