"""A tiny Gemma 3 with sliding-window layers and a chat tokenizer, loaded as bitsandbytes NF4, and LoRA for it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from tests.support.tiny_checkpoint import write_tiny_checkpoint

LAYERS = 5
"""Odd, so that the first and the last share one of two slots; all but the fourth have a sliding window."""


def write_tiny_gemma(folder: Path) -> Path:
    """A checkpoint of random bf16 weights, hidden 64, with the tokenizer of `write_tiny_checkpoint`."""
    from transformers import Gemma3ForCausalLM, Gemma3TextConfig

    write_tiny_checkpoint(folder, layers=1)
    config = Gemma3TextConfig(
        vocab_size=512,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=LAYERS,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=32,
        query_pre_attn_scalar=32,
        sliding_window=16,
        layer_types=["full_attention" if layer % 4 == 3 else "sliding_attention" for layer in range(LAYERS)],
        max_position_embeddings=512,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        Gemma3ForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)
    return folder


def load_nf4(checkpoint: Path, device: str = "cpu", dtype: torch.dtype = torch.bfloat16) -> Any:
    """What transformers and bitsandbytes make of it by themselves, but never repacked by an evaluation."""
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    nf4 = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
    )
    model = AutoModelForCausalLM.from_pretrained(
        checkpoint, quantization_config=nf4, dtype=dtype, device_map={"": device}, local_files_only=True
    )
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False
    return model.requires_grad_(False)


def lora(*, dropout: float = 0.1, dora: bool = False) -> Any:
    from peft import LoraConfig

    return LoraConfig(
        r=4, lora_alpha=8, lora_dropout=dropout, target_modules="all-linear", task_type="CAUSAL_LM", use_dora=dora
    )


def decoder_layers(model: Any) -> Any:
    """Of a causal LM, wrapped by PEFT or not."""
    causal_lm = model.get_base_model() if hasattr(model, "get_base_model") else model
    return causal_lm.model.layers
