"""What a piece of code takes of the processor, without what else goes on in its process."""

from __future__ import annotations

import contextlib
import gc
import time
from collections.abc import Callable, Iterator


@contextlib.contextmanager
def uncollected() -> Iterator[None]:
    """Without collections of garbage: they are of all that the tests before have left, up to 2 s of it."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


@contextlib.contextmanager
def within(seconds: float, what: object = "") -> Iterator[None]:
    """Fails when the block takes more, of its thread alone."""
    with uncollected():
        start = time.thread_time()
        yield
        took = time.thread_time() - start
    assert took < seconds, f"{took:.3f} s of {seconds} s {what}"


def own_seconds(action: Callable[[], object]) -> float:
    with uncollected():
        start = time.thread_time()
        action()
        return time.thread_time() - start
