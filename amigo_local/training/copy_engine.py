"""How bytes get from the host into fixed device buffers beside the computing, and how the computing waits for them."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from random import Random
from typing import Any, Protocol

import msgspec
import torch

Mark = Any
"""A point in the order of computing; None where computing is synchronous."""
Ticket = Any
"""A copy under way; None where it is done already."""


class Traffic(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What an engine has moved since it was made. Seconds of a copy or a wait count once it is over."""

    copies: int = 0
    nbytes: int = 0
    waited: int = 0
    """Copies that computing stood still for: those that weren't hidden behind it."""
    seconds_copying: float = 0.0
    seconds_waited: float = 0.0

    def since(self, earlier: Traffic) -> Traffic:
        return Traffic(
            copies=self.copies - earlier.copies,
            nbytes=self.nbytes - earlier.nbytes,
            waited=self.waited - earlier.waited,
            seconds_copying=self.seconds_copying - earlier.seconds_copying,
            seconds_waited=self.seconds_waited - earlier.seconds_waited,
        )

    @property
    def gigabytes_per_second(self) -> float | None:
        """Of the time spent copying; None where nothing was copied."""
        return self.nbytes / self.seconds_copying / 1e9 if self.seconds_copying else None

    @property
    def hidden(self) -> float:
        """Share of copying time that hid behind computing, 0 to 1: what MemoryPlan.copies_hidden predicts."""
        return 1 - min(1.0, self.seconds_waited / self.seconds_copying) if self.seconds_copying else 1.0


class CopyEngine(Protocol):
    """One order of copies beside one order of computing. Called by one thread at a time: the one that computes."""

    def mark(self) -> Mark:
        """The present point in the order of computing: everything that was started up to now."""

    def copy(self, target: torch.Tensor, source: torch.Tensor, after: Mark) -> Ticket:
        """Starts copying `source` (host) into `target` (device), both uint8 (n,), not before `after` is reached.

        Copies take place in the order they are asked for, so a later one into the same target prevails.
        """

    def wait(self, ticket: Ticket) -> None:
        """What is computed from now on sees the copied bytes. Raises AmigoError where copying to a card failed."""

    def traffic(self) -> Traffic:
        """Never waits for the device."""

    def close(self) -> None:
        """Waits for what is under way and frees threads, streams and staging buffers. May be called twice."""


class TrafficMeter:
    """Adds up a Traffic; seconds come in as they become known."""

    def __init__(self) -> None:
        self._copies = self._nbytes = self._waited = 0
        self._copying = self._waiting = 0.0

    def count(self, nbytes: int) -> None:
        self._copies += 1
        self._nbytes += nbytes

    def copied(self, seconds: float) -> None:
        self._copying += seconds

    def stood_still(self, seconds: float) -> None:
        self._waited += 1
        self._waiting += seconds

    def traffic(self) -> Traffic:
        return Traffic(
            copies=self._copies,
            nbytes=self._nbytes,
            waited=self._waited,
            seconds_copying=self._copying,
            seconds_waited=self._waiting,
        )


class SyncEngine:
    """Copies at once: for a host without a second processor to copy beside it."""

    def __init__(self, *, clock: Callable[[], float] = time.perf_counter) -> None:
        self._clock, self._meter = clock, TrafficMeter()

    def mark(self) -> Mark:
        return None

    def copy(self, target: torch.Tensor, source: torch.Tensor, after: Mark) -> Ticket:
        started = self._clock()
        target.copy_(source)
        seconds = self._clock() - started
        self._meter.count(target.numel())
        self._meter.copied(seconds)
        self._meter.stood_still(seconds)
        return None

    def wait(self, ticket: Ticket) -> None:
        return None

    def traffic(self) -> Traffic:
        return self._meter.traffic()

    def close(self) -> None:
        return None


class _Half:
    """One half of a copy, and its turn on the thread once it has been given one."""

    def __init__(self, target: torch.Tensor, source: torch.Tensor) -> None:
        self.target, self.source = target, source
        self.started: Future[None] | None = None


class ThreadedEngine:
    """Copies host memory on a thread, in halves: a device's order of copying, for proofs without a device.

    late: chance that a half, and with it all that comes after, isn't started until someone waits for it. At 1.0
    nothing arrives that wasn't waited for, at 0.0 everything as soon as the thread gets to it; `random` draws.
    """

    def __init__(
        self, *, late: float = 0.0, random: Random | None = None, clock: Callable[[], float] = time.perf_counter
    ) -> None:
        self._late, self._random, self._clock = late, random or Random(0), clock
        self._meter = TrafficMeter()
        self._thread = ThreadPoolExecutor(1, "copies")
        self._held: deque[_Half] = deque()

    def mark(self) -> Mark:
        return None

    def copy(self, target: torch.Tensor, source: torch.Tensor, after: Mark) -> Ticket:
        middle = target.numel() // 2
        halves = (_Half(target[:middle], source[:middle]), _Half(target[middle:], source[middle:]))
        for half in halves:
            if self._held or self._random.random() < self._late:
                self._held.append(half)
            else:
                self._start(half)
        self._meter.count(target.numel())
        return halves

    def wait(self, ticket: Ticket) -> None:
        started, still = self._clock(), False
        for half in ticket:
            while half.started is None:
                self._start(self._held.popleft())
            still |= not half.started.done()
            half.started.result()
        if still:
            self._meter.stood_still(self._clock() - started)

    def traffic(self) -> Traffic:
        return self._meter.traffic()

    def close(self) -> None:
        while self._held:
            self._start(self._held.popleft())
        self._thread.shutdown()

    def _start(self, half: _Half) -> None:
        half.started = self._thread.submit(self._copy, half)

    def _copy(self, half: _Half) -> None:
        started = self._clock()
        half.target.copy_(half.source)
        self._meter.copied(self._clock() - started)  # which only this thread adds to
