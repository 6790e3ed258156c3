"""A card without a card: copies wait in a queue and take place as late as their order allows."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from random import Random

import torch


class Event:
    """A point in the order of computing or copying."""

    def __init__(self, reached: bool = False) -> None:
        self.is_reached = reached
        self.at: float | None = None


class Stuck(Exception):
    """The order of copying can't go on: it is held by an event that nothing under way will reach."""


class SimulatedDevice:
    """`staging_ring.Device`. Computing is what the test does with torch, at once.

    The queue of copies moves only when someone has to see its effect, so a staged chunk that is overwritten too early
    or a copy that isn't waited for shows in the bytes. With `random` it also moves at other times, a few entries at a
    time, so that copies also come as early as they may.
    """

    def __init__(self, random: Random | None = None) -> None:
        self._random = random
        self._queue: deque[tuple[Callable[[], object], Event | None]] = deque()
        self._lock = threading.RLock()  # a staging thread and the computing one call in
        self._ticks = 0.0
        self.sent: list[int] = []
        """Bytes of each copy, in order of submission."""
        self.closed = False

    def page_locked(self, nbytes: int) -> torch.Tensor:
        return torch.empty(nbytes, dtype=torch.uint8)

    def computing_now(self, *, timed: bool) -> Event:
        with self._lock:
            self._wander()
            return self._stamp(Event())

    def copying_now(self, *, timed: bool) -> Event:
        event = Event()
        self._put(lambda: self._stamp(event), None)
        return event

    def hold_computing(self, until: Event) -> None:
        self.reach(until)

    def hold_copying(self, until: Event) -> None:
        self._put(lambda: None, until)

    def send(self, target: torch.Tensor, source: torch.Tensor) -> None:
        middle = target.numel() // 2
        self.sent.append(target.numel())
        self._put(lambda: target[:middle].copy_(source[:middle]), None)
        self._put(lambda: target[middle:].copy_(source[middle:]), None)

    def reach(self, event: Event) -> None:
        with self._lock:
            while not event.is_reached:
                if not self.step():
                    raise Stuck

    def reached(self, event: Event) -> bool:
        with self._lock:
            self._wander()
            return event.is_reached

    def seconds_between(self, start: Event, end: Event) -> float:
        assert start.at is not None and end.at is not None, "times of what isn't over"
        return end.at - start.at

    def close(self) -> None:
        with self._lock:
            while self.step():
                pass
            self.closed = True

    def step(self) -> bool:
        """Lets the next entry of the queue take place; False when there is none or it is held."""
        with self._lock:
            if not self._queue or (self._queue[0][1] is not None and not self._queue[0][1].is_reached):
                return False
            self._queue.popleft()[0]()
            return True

    def _put(self, entry: Callable[[], object], until: Event | None) -> None:
        with self._lock:
            self._queue.append((entry, until))
            self._wander()

    def _wander(self) -> None:
        for _ in range(self._random.choice((0, 0, 1, 2, 5)) if self._random else 0):
            self.step()

    def _stamp(self, event: Event) -> Event:
        self._ticks += 1.0
        event.is_reached, event.at = True, self._ticks
        return event
