"""Tiny random checkpoints of every family that training knows, written by transformers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

VOCABULARY = 384
_COMMON: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "bos_token_id": 2,
    "eos_token_id": 1,
    "pad_token_id": 0,
}
_LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 128,
}
_GEMMA3_ROPE = {
    "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
    "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
}
# Name -> model_type and what it has that the others haven't.
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {"rope_parameters": _LLAMA3, "tie_word_embeddings": True}),
    # Rows of 24 and 40: no whole blocks, so that a block begins in one row and ends in another.
    "llama-untied-biased-odd": (
        "llama",
        {"hidden_size": 24, "intermediate_size": 40, "head_dim": 6, "attention_bias": True, "mlp_bias": True},
    ),
    "qwen2": ("qwen2", {"tie_word_embeddings": True}),
    "qwen3": ("qwen3", {"head_dim": 32}),
    "gemma2": ("gemma2", {"head_dim": 32, "sliding_window": 16, "query_pre_attn_scalar": 32}),
    "gemma3": (
        "gemma3_text",
        {"head_dim": 32, "sliding_window": 16, "rope_parameters": _GEMMA3_ROPE, "num_hidden_layers": 6},
    ),
    "phi3": ("phi3", {"sliding_window": None}),
}


def write_family(folder: Path, name: str, *, dtype: str = "bfloat16", **settings: Any) -> Path:
    """The same bytes every time. Norms around one half, biases and weights away from zero."""
    import torch
    import transformers

    model_type, own = FAMILIES[name]
    config = transformers.AutoConfig.for_model(model_type, **(_COMMON | own | settings))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(sum(name.encode()))
        model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        with torch.no_grad():
            for parameter_name, parameter in model.named_parameters():
                parameter.copy_(torch.randn_like(parameter) * 0.1 + 0.5 * ("norm" in parameter_name))
        model.to(getattr(torch, dtype)).save_pretrained(folder)
    return folder
