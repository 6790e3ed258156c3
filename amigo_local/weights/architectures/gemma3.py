"""gemma3 as transformers' Gemma3ForCausalLM: the language model, without the vision tower that may share the file."""

from __future__ import annotations

from typing import Any

import msgspec

from amigo_local.weights.architecture import Architecture
from amigo_local.weights.checkpoint_config import base_config, layer_types, rope_parameters, shortest
from amigo_local.weights.gguf_array import Items
from amigo_local.weights.gguf_header import GgufHeader, Scalar, Value

VISION = ("v.", "mm.")
_LAYERS_27B = 62  # LLM_TYPE_27B in llama.cpp's gemma3.cpp
_PERIOD = 6  # the last of six layers sees everything
_SCALED_CONTEXT = 131072  # 4B, 12B and 27B; the text-only 270M and 1B have 32768 and no scaling
# [first, last] ids of Gemma 3's vocabulary by token type, as in the GGUFs that llama.cpp's converter writes;
# Ollama's library blobs call all of these plain. Types: 3 control, 4 user-defined, 6 byte.
_VOCABULARY = 262144
_TOKEN_TYPES = {3: ((0, 4), (6, 106), (256001, 262143)), 4: ((5, 5), (107, 237), (255968, 256000)), 6: ((238, 493),)}


def normalize(header: GgufHeader) -> GgufHeader:
    """Adds what llama.cpp's converter writes and Ollama's doesn't; a plain file comes back unchanged.

    After `handle_gemma3` in Ollama's llama/compat: epsilon, both rotary bases, the linear factor 8 of the models with
    a long context, and tokens beyond the embedding's rows.
    """
    prefix = f"{header.architecture}."
    metadata = dict(header.metadata)

    def default(key: str, value: Value) -> None:
        metadata.setdefault(prefix + key, value)

    default("attention.layer_norm_rms_epsilon", 1e-6)
    default("rope.freq_base", header.real("rope.global.freq_base", 1e6, above=0))
    default("rope.freq_base_swa", header.real("rope.local.freq_base", 1e4, above=0))
    context = metadata.get(prefix + "context_length")
    if isinstance(context, int) and context >= _SCALED_CONTEXT and prefix + "rope.scaling.factor" not in metadata:
        metadata[prefix + "rope.scaling.type"] = "linear"
        metadata[prefix + "rope.scaling.factor"] = 8.0
    rows = header.tensor("token_embd.weight").dimensions[-1]
    for key in ("tokens", "scores", "token_type"):
        name = f"tokenizer.ggml.{key}"
        if header.length(name) > rows:
            kept = header.array(name)[:rows]
            metadata[name] = kept if isinstance(kept, Items) else tuple(kept)
    normalized = msgspec.structs.replace(header, metadata=metadata)
    types = _unflattened_types(normalized)
    if types is not None:
        metadata["tokenizer.ggml.token_type"] = types
    metadata.setdefault("tokenizer.ggml.add_space_prefix", False)
    return normalized


def _unflattened_types(header: GgufHeader) -> tuple[Scalar, ...] | None:
    """Gemma's token types where the file has its vocabulary without them; None where there is nothing to mend."""
    if header.length("tokenizer.ggml.tokens") != _VOCABULARY:
        return None
    newline = _TOKEN_TYPES[4][1][0]
    types = header.array("tokenizer.ggml.token_type")
    if (len(types) == _VOCABULARY and types[newline] == 4) or header.array("tokenizer.ggml.tokens")[newline] != "\n":
        return None
    mended: list[Scalar] = [1] * _VOCABULARY
    for kind, ranges in _TOKEN_TYPES.items():
        for first, last in ranges:
            mended[first : last + 1] = [kind] * (last - first + 1)
    return tuple(mended)


def config(header: GgufHeader) -> dict[str, Any]:
    settings = base_config(header, "gemma3_text", "Gemma3ForCausalLM")
    layers = settings["num_hidden_layers"]
    # gemma3.cpp: the 27B scales queries by the hidden size per head, the others by the head size.
    per_head = settings["hidden_size"] // settings["num_attention_heads"]
    # Without a window all layers see everything and rotate alike (Rnj-1).
    window = header.count("attention.sliding_window", 0, least=0)
    softcap = header.real("final_logit_softcapping", 0.0)
    full = rope_parameters(header)
    local = {"rope_theta": shortest(header.real("rope.freq_base_swa", 1e4, above=0)), "rope_type": "default"}
    return settings | {
        "hidden_activation": "gelu_pytorch_tanh",
        "attention_bias": False,
        "sliding_window": window or None,
        "query_pre_attn_scalar": per_head if layers == _LAYERS_27B else settings["head_dim"],
        "layer_types": layer_types(header, layers, _PERIOD) if window else ["full_attention"] * layers,
        "attn_logit_softcapping": None,
        "final_logit_softcapping": shortest(softcap) if softcap else None,
        "rope_parameters": {"full_attention": full, "sliding_attention": local},
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
        "post_attention_norm": "post_attention_layernorm",
        "ffn_norm": "pre_feedforward_layernorm",
        "ffn_gate": "mlp.gate_proj",
        "ffn_up": "mlp.up_proj",
        "ffn_down": "mlp.down_proj",
        "post_ffw_norm": "post_feedforward_layernorm",
    },
    config=config,
    overflows_float16=True,
    norm_offset=1.0,  # Gemma3RMSNorm multiplies by (1 + weight); llama.cpp by the weight
    skipped_prefixes=VISION,
    normalize=normalize,
)
