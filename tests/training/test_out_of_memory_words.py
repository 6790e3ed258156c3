"""Running out of memory is known by what CUDA says, whichever part of it speaks."""

from __future__ import annotations

import pytest
import torch

from amigo_local.training.out_of_memory import is_out_of_memory


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("Allocation on device 0 would exceed allowed memory."),
        RuntimeError("CUDA error: out of memory\nCUDA kernel errors might be asynchronously reported"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    ],
)
def test_every_way_of_running_out_is_known(error: RuntimeError) -> None:
    assert is_out_of_memory(error)


def test_other_failures_are_not_taken_for_it() -> None:
    assert not is_out_of_memory(RuntimeError("CUDA error: an illegal memory access was encountered"))
