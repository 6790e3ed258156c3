"""Runs judgements two at a time and gives them back in order."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

THREADS = 2
"""A judgement waits for a process of its own: threads suffice, and more of them only crowd two cores."""
_AHEAD = 4

T = TypeVar("T")
R = TypeVar("R")


def judged_in_order(items: Iterable[T], judged: Callable[[T], R]) -> Iterator[tuple[T, R]]:
    """Each item with its judgement. Little is judged ahead: who stops asking stops the work."""
    pool = ThreadPoolExecutor(THREADS, thread_name_prefix="judging")
    waiting: deque[tuple[T, Future[R]]] = deque()
    try:
        for item in items:
            waiting.append((item, pool.submit(judged, item)))
            if len(waiting) >= _AHEAD:
                first, future = waiting.popleft()
                yield first, future.result()
        while waiting:
            first, future = waiting.popleft()
            yield first, future.result()
    finally:
        pool.shutdown(cancel_futures=True)
