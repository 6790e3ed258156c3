"""The order of query and key rows: llama.cpp interleaves what transformers keeps in halves."""

from __future__ import annotations

from typing import TypeVar

import numpy as np
import numpy.typing as npt

_Item = TypeVar("_Item", bound=np.generic)
"""float32 values, or the uint8 of quantized rows: rows move as a whole, so a row's type doesn't matter."""


def to_checkpoint_rows(rows: npt.NDArray[_Item], head_dim: int) -> npt.NDArray[_Item]:
    """Undoes LlamaModel.permute of llama.cpp's conversion/llama.py on (whole heads * head_dim, columns)."""
    return rows.reshape(-1, head_dim // 2, 2, rows.shape[1]).swapaxes(1, 2).reshape(rows.shape)


def to_gguf_rows(rows: npt.NDArray[_Item], head_dim: int) -> npt.NDArray[_Item]:
    """LlamaModel.permute on (whole heads * head_dim, columns): the inverse of `to_checkpoint_rows`."""
    return rows.reshape(-1, 2, head_dim // 2, rows.shape[1]).swapaxes(1, 2).reshape(rows.shape)
