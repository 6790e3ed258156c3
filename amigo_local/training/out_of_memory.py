"""What running out of memory looks like: not every part of CUDA says it in torch's own class."""

from __future__ import annotations

import torch

# cuBLAS, whose handle is made at its first use; kernels that are loaded lazily; page-locked memory (cudaHostAlloc).
_WORDS = ("out of memory", "CUBLAS_STATUS_ALLOC_FAILED", "CUBLAS_STATUS_NOT_INITIALIZED")


def is_out_of_memory(error: RuntimeError) -> bool:
    return isinstance(error, torch.OutOfMemoryError) or any(words in str(error) for words in _WORDS)
