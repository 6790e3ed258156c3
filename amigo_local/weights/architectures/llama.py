"""llama (Llama 2 and 3, Mistral, SmolLM2 and others that GGUF calls llama) as transformers' LlamaForCausalLM.

llama.cpp has no architecture named mistral: its converter writes Mistral models as llama, which computes the same.
The sliding window of Mistral 7B v0.1 isn't in the file, and llama.cpp attends without it.
"""

from __future__ import annotations

import math
from typing import Any

from amigo_local.domain.errors import InputError
from amigo_local.weights.architecture import Architecture
from amigo_local.weights.checkpoint_config import base_config, rope_parameters
from amigo_local.weights.gguf_header import GgufHeader

ROPE_FACTORS = "rope_freqs.weight"


def config(header: GgufHeader) -> dict[str, Any]:
    names = header.tensor_names
    rope = rope_parameters(header)
    return base_config(header, "llama", "LlamaForCausalLM") | {
        "hidden_act": "silu",
        "attention_bias": "blk.0.attn_q.bias" in names,
        "mlp_bias": "blk.0.ffn_up.bias" in names,
        "rope_parameters": _llama3_rope(header, rope) if ROPE_FACTORS in names else rope,
    }


def _llama3_rope(header: GgufHeader, plain: dict[str, Any]) -> dict[str, Any]:
    """Recovers Llama 3's rotary scaling from the table that llama.cpp's converter computed, and verifies it.

    The inverse of LlamaModel.generate_extra_tensors in conversion/llama.py. All Llama 3.1 to 3.3 releases share
    the low and high factors and the original context; the factor is 8 or 32.
    """
    from amigo_local.weights.tensor_rows import read_vector  # numpy: only where the table is there

    if plain["rope_type"] != "default":
        raise InputError(
            f"{header.path}: has both {ROPE_FACTORS} and rotary scaling {plain['rope_type']!r}",
            "this rotary scaling isn't supported",
        )
    table = [float(value) for value in read_vector(header, ROPE_FACTORS)]
    low, high, original, factor = 1.0, 4.0, 8192, max(table)
    if factor < 1:
        raise InputError(
            f"{header.path}: {ROPE_FACTORS} holds no factor from 1 up", "this rotary scaling isn't supported"
        )
    for i, found in enumerate(table):
        wavelength = 2 * math.pi * plain["rope_theta"] ** (i / len(table))
        if wavelength < original / high:
            expected = 1.0
        elif wavelength > original / low:
            expected = factor
        else:
            smooth = (original / wavelength - low) / (high - low)
            expected = 1 / ((1 - smooth) / factor + smooth)
        if not math.isclose(found, expected, rel_tol=1e-4):
            raise InputError(
                f"{header.path}: {ROPE_FACTORS} is not Llama 3's table: entry {i} is {found}, expected {expected}",
                "this rotary scaling isn't supported",
            )
    return plain | {
        "rope_type": "llama3",
        "factor": factor,
        "low_freq_factor": low,
        "high_freq_factor": high,
        "original_max_position_embeddings": original,
    }


ARCHITECTURE = Architecture(
    blocks={
        "attn_norm": "input_layernorm",
        "attn_q": "self_attn.q_proj",
        "attn_k": "self_attn.k_proj",
        "attn_v": "self_attn.v_proj",
        "attn_output": "self_attn.o_proj",
        "ffn_norm": "post_attention_layernorm",
        "ffn_gate": "mlp.gate_proj",
        "ffn_up": "mlp.up_proj",
        "ffn_down": "mlp.down_proj",
    },
    bias_switches=(
        frozenset({"attn_q", "attn_k", "attn_v", "attn_output"}),
        frozenset({"ffn_gate", "ffn_up", "ffn_down"}),
    ),
    config=config,
    permuted={"attn_q": "attention.head_count", "attn_k": "attention.head_count_kv"},
    recomputed=frozenset({ROPE_FACTORS}),
)
