"""qwen3 (the dense ones) as transformers' Qwen3ForCausalLM."""

from __future__ import annotations

from typing import Any

from amigo_local.weights.architecture import Architecture
from amigo_local.weights.checkpoint_config import base_config, rope_parameters
from amigo_local.weights.gguf_header import GgufHeader


def config(header: GgufHeader) -> dict[str, Any]:
    return base_config(header, "qwen3", "Qwen3ForCausalLM") | {
        "hidden_act": "silu",
        "attention_bias": False,  # llama.cpp's graph has no bias on the output projection, which this switch adds
        "use_sliding_window": False,
        "rope_parameters": rope_parameters(header),
    }


ARCHITECTURE = Architecture(
    blocks={
        "attn_norm": "input_layernorm",
        "attn_q": "self_attn.q_proj",
        "attn_k": "self_attn.k_proj",
        "attn_v": "self_attn.v_proj",
        "attn_q_norm": "self_attn.q_norm",
        "attn_k_norm": "self_attn.k_norm",
        "attn_output": "self_attn.o_proj",
        "ffn_norm": "post_attention_layernorm",
        "ffn_gate": "mlp.gate_proj",
        "ffn_up": "mlp.up_proj",
        "ffn_down": "mlp.down_proj",
    },
    config=config,
)
