"""What a piece of code takes of the processor, without what else goes on in its process."""

from __future__ import annotations

import contextlib
import gc
import time
from collections.abc import Iterator


@contextlib.contextmanager
def within(seconds: float, what: object = "") -> Iterator[None]:
    """Fails when the block takes more. Of its thread alone, and without collections of garbage: those are of all that
    the tests before it have left, up to 2 s of it."""
    was_on = gc.isenabled()
    gc.disable()
    start = time.thread_time()
    try:
        yield
    finally:
        took = time.thread_time() - start
        if was_on:
            gc.enable()
    assert took < seconds, f"{took:.3f} s of {seconds} s {what}"
