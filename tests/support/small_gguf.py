"""Language models of a few kilobytes, for tests that read headers by the thousand; llama.cpp can't run them."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np


def write_small_model(path: Path, architecture: str, tokenizer: str, **how: int) -> bytes:
    """A language model of 80 tokens and two layers, not all of their tensors. Returns the (first) file's 19 KB.

    `tokenizer` is GGUF's word: gpt2 or llama. `how` goes to gguf-py's writer.
    """
    writer = gguf.GGUFWriter(path, architecture, **how)
    writer.add_block_count(2)
    writer.add_context_length(64)
    writer.add_embedding_length(32)
    writer.add_feed_forward_length(32)
    writer.add_head_count(2)
    writer.add_head_count_kv(1)
    writer.add_key_length(16)
    writer.add_rope_freq_base(10000.0)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_file_type(1)
    writer.add_chat_template("{{ messages }}")
    writer.add_tokenizer_model(tokenizer)
    writer.add_tokenizer_pre("smollm" if tokenizer == "gpt2" else "default")
    tokens = ["<s>", "</s>", "<unk>"] + [f"t{i}" if tokenizer == "gpt2" else f"\u2581{i}" for i in range(77)]
    writer.add_token_list(tokens)
    writer.add_token_types([3, 3, 2] + [1] * 77)
    writer.add_token_scores([float(-i) for i in range(80)])
    if tokenizer == "gpt2":
        writer.add_token_merges([f"t {i}" for i in range(10)])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(1)
    writer.add_unk_token_id(2)
    writer.add_add_bos_token(True)
    for name, rows in (("token_embd.weight", 80), ("output_norm.weight", 0)):
        writer.add_tensor(name, np.zeros((rows, 32) if rows else 32, np.float16))
    for block in range(2):
        for part, rows in (("attn_norm", 0), ("attn_q", 32), ("attn_k", 16), ("ffn_up", 32), ("ffn_norm", 0)):
            writer.add_tensor(f"blk.{block}.{part}.weight", np.zeros((rows, 32) if rows else 32, np.float16))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return min(path.parent.glob(f"{path.stem}*.gguf")).read_bytes()
