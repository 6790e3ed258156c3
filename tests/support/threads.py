"""How many threads torch computes with: the bytes of an adapter depend on it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest


@contextmanager
def threads_put_back() -> Iterator[None]:
    """A training sets torch's threads for its own process."""
    import torch

    before = torch.get_num_threads()
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def one_thread() -> Iterator[None]:
    """For every training within; more would spin and starve each other where tests run side by side."""
    with threads_put_back(), pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        yield
