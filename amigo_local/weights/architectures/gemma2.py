"""gemma2 as transformers' Gemma2ForCausalLM."""

from __future__ import annotations

from typing import Any

from amigo_local.weights.architecture import Architecture
from amigo_local.weights.checkpoint_config import base_config, layer_types, rope_parameters, shortest
from amigo_local.weights.gguf_header import GgufHeader

_LAYERS_27B = 46  # LLM_TYPE_27B in llama.cpp's gemma2.cpp
_PERIOD = 2  # every second layer sees everything


def config(header: GgufHeader) -> dict[str, Any]:
    settings = base_config(header, "gemma2", "Gemma2ForCausalLM")
    layers = settings["num_hidden_layers"]
    # gemma2.cpp: the 27B scales queries by the hidden size per head, the others by the head size.
    per_head = settings["hidden_size"] // settings["num_attention_heads"]
    return settings | {
        "hidden_activation": "gelu_pytorch_tanh",
        "attention_bias": False,
        "sliding_window": header.count("attention.sliding_window", 4096),
        "layer_types": layer_types(header, layers, _PERIOD),
        "query_pre_attn_scalar": per_head if layers == _LAYERS_27B else settings["head_dim"],
        "attn_logit_softcapping": shortest(header.real("attn_logit_softcapping", 50.0)),
        "final_logit_softcapping": shortest(header.real("final_logit_softcapping", 30.0)),
        "rope_parameters": rope_parameters(header),
    }


ARCHITECTURE = Architecture(
    blocks={
        "attn_norm": "input_layernorm",
        "attn_q": "self_attn.q_proj",
        "attn_k": "self_attn.k_proj",
        "attn_v": "self_attn.v_proj",
        "attn_output": "self_attn.o_proj",
        "post_attention_norm": "post_attention_layernorm",
        "ffn_norm": "pre_feedforward_layernorm",
        "ffn_gate": "mlp.gate_proj",
        "ffn_up": "mlp.up_proj",
        "ffn_down": "mlp.down_proj",
        "post_ffw_norm": "post_feedforward_layernorm",
    },
    config=config,
    overflows_float16=True,
    norm_offset=1.0,  # Gemma2RMSNorm multiplies by (1 + weight); llama.cpp by the weight
)
