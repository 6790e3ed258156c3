"""The order of query and key rows: llama.cpp interleaves what transformers keeps in halves."""

from __future__ import annotations

from amigo_local.weights.tensor_rows import Rows


def to_checkpoint_rows(rows: Rows, head_dim: int) -> Rows:
    """Undoes LlamaModel.permute of convert_hf_to_gguf.py on (whole heads * head_dim, columns)."""
    return rows.reshape(-1, head_dim // 2, 2, rows.shape[1]).swapaxes(1, 2).reshape(rows.shape)


def to_gguf_rows(rows: Rows, head_dim: int) -> Rows:
    """LlamaModel.permute on (whole heads * head_dim, columns): the inverse of `to_checkpoint_rows`."""
    return rows.reshape(-1, 2, head_dim // 2, rows.shape[1]).swapaxes(1, 2).reshape(rows.shape)
