"""A copy engine for a card: bytes of a mapped file reach it through a small page-locked ring that a thread fills."""

from __future__ import annotations

from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Protocol

import torch

from amigo_local.domain.errors import AmigoError
from amigo_local.training.buffer_sizes import CHUNK_BYTES, CHUNKS
from amigo_local.training.copy_engine import Mark, Ticket, Traffic, TrafficMeter

EVENTS_OWN_SECONDS = 50e-6
"""A shorter wait is no wait: about what lies between two events with nothing between them."""

Event = Any
"""A point in the order of computing or of copying."""


class Device(Protocol):
    """What staging asks of a card: an order of computing (the caller's), an order of copying, and points in both."""

    def page_locked(self, nbytes: int) -> torch.Tensor:
        """Host memory, uint8 (nbytes,), that the card reads by itself."""

    def computing_now(self, *, timed: bool) -> Event:
        """The present end of the order of computing."""

    def copying_now(self, *, timed: bool) -> Event:
        """The present end of the order of copying."""

    def hold_computing(self, until: Event) -> None:
        """What is computed from now on comes after `until`. Doesn't block."""

    def hold_copying(self, until: Event) -> None:
        """What is copied from now on comes after `until`. Doesn't block."""

    def send(self, target: torch.Tensor, source: torch.Tensor) -> None:
        """Puts a copy into the order of copying. `source` is read later, unless it is pageable."""

    def reach(self, event: Event) -> None:
        """Blocks the calling thread until the card is there."""

    def reached(self, event: Event) -> bool: ...

    def seconds_between(self, start: Event, end: Event) -> float:
        """Of two timed events of one order, both reached."""

    def close(self) -> None:
        """Blocks until the order of copying has come to its end."""


class _Chunk:
    def __init__(self, buffer: torch.Tensor) -> None:
        self.buffer = buffer
        self.left: Event | None = None
        """When the last bytes put here are on the card."""


class StagingRing:
    """`chunks` page-locked buffers in turn. chunk_bytes: a power of two, or torch's pinned allocator rounds up."""

    def __init__(self, device: Device, chunk_bytes: int = CHUNK_BYTES, chunks: int = CHUNKS) -> None:
        if chunk_bytes & (chunk_bytes - 1) or chunk_bytes <= 0 or chunks < 1:
            raise ValueError(f"a staging ring of {chunks} chunks of {chunk_bytes} bytes; wanted a power of two")
        self._device, self._chunk_bytes = device, chunk_bytes
        self._free = deque(_Chunk(device.page_locked(chunk_bytes)) for _ in range(chunks))

    def send(self, target: torch.Tensor, source: torch.Tensor) -> None:
        """Returns when the last byte of `source` has been read."""
        for start in range(0, source.numel(), self._chunk_bytes):
            piece = source[start : start + self._chunk_bytes]
            chunk = self._free[0]
            if chunk.left is not None:
                self._device.reach(chunk.left)
            staged = chunk.buffer[: piece.numel()]
            staged.copy_(piece)  # releases the GIL; page faults of a mapped file are served here
            self._device.send(target[start : start + piece.numel()], staged)
            chunk.left = self._device.copying_now(timed=False)
            self._free.rotate(-1)


class _Copy:
    """One copy from the moment it is asked for."""

    def __init__(self, target: torch.Tensor, source: torch.Tensor, after: Mark) -> None:
        self.target, self.source, self.after = target, source, after
        self.submitted: Future[None] | None = None
        """Done when the whole copy is in the order of copying; None: it is already."""
        self.started: Event = None
        self.done: Event = None


class DeviceEngine:
    """Copies beside the computing of a Device.

    ring: staging for pageable sources, filled by a thread of its own. None: sources are sent as they lie, by the
    caller; those that aren't page-locked then make it wait while the driver stages them.
    """

    def __init__(self, device: Device, ring: StagingRing | None) -> None:
        self._device, self._ring = device, ring
        self._thread = ThreadPoolExecutor(1, "staging") if ring else None
        self._failure: RuntimeError | None = None
        self._meter = TrafficMeter()
        self._copying: deque[_Copy] = deque()
        self._waiting: deque[tuple[Event, Event]] = deque()
        self._closed = False

    def mark(self) -> Mark:
        return self._device.computing_now(timed=False)

    def copy(self, target: torch.Tensor, source: torch.Tensor, after: Mark) -> Ticket:
        if target.shape != source.shape or target.dtype != torch.uint8 or source.dtype != torch.uint8:
            raise ValueError(f"{source.dtype} {tuple(source.shape)} into {target.dtype} {tuple(target.shape)}")
        if self._closed:
            raise RuntimeError("this copy engine is closed")
        self._raise_failure()
        self._settle()
        copy = _Copy(target, source, after)
        if self._thread is not None:
            copy.submitted = self._thread.submit(self._submit, copy)
        else:
            self._submit(copy)
        self._copying.append(copy)
        self._meter.count(target.numel())
        return copy

    def wait(self, ticket: Ticket) -> None:
        """Holds the order of computing; blocks the caller only until the copy is in the order of copying."""
        copy: _Copy = ticket
        if copy.submitted is not None:
            copy.submitted.result()
        self._raise_failure()
        if self._device.reached(copy.done):
            # Nothing to stand still for, but the order still has to be known to the device.
            self._device.hold_computing(copy.done)
            return
        before = self._device.computing_now(timed=True)
        self._device.hold_computing(copy.done)
        self._waiting.append((before, self._device.computing_now(timed=True)))

    def traffic(self) -> Traffic:
        self._settle()
        return self._meter.traffic()

    def close(self) -> None:
        """Raises AmigoError where a copy failed that nobody has waited for since."""
        if self._closed:
            return
        self._closed = True
        if self._thread is not None:
            self._thread.shutdown()
        self._device.close()
        self._settle()
        self._ring = None
        self._raise_failure()

    def _submit(self, copy: _Copy) -> None:
        """On the staging thread, if there is one. Once a copy has failed the ones behind it aren't tried."""
        if self._failure is not None:
            return
        try:
            self._device.hold_copying(copy.after)
            copy.started = self._device.copying_now(timed=True)
            if self._ring is not None:
                self._ring.send(copy.target, copy.source)
            else:
                self._device.send(copy.target, copy.source)
            copy.done = self._device.copying_now(timed=True)
        except RuntimeError as error:  # all that torch and CUDA raise; a fault of a mapped file is a signal
            self._failure = error

    def _raise_failure(self) -> None:
        if self._failure is not None:
            raise AmigoError(
                f"copying weights to the card failed: {self._failure}",
                "run again: training resumes at its last checkpoint",
            ) from self._failure

    def _settle(self) -> None:
        """Takes the times of what is over, without waiting for what isn't."""
        while self._copying:
            copy = self._copying[0]
            if copy.submitted is not None:
                if not copy.submitted.done():
                    break
                copy.submitted.result()  # a fault of our own, which no wait may have met
            if copy.done is not None:  # else it failed
                if not self._device.reached(copy.done):
                    break
                self._meter.copied(self._device.seconds_between(copy.started, copy.done))
            self._copying.popleft()
        while self._waiting and self._device.reached(self._waiting[0][1]):
            seconds = self._device.seconds_between(*self._waiting.popleft())
            if seconds > EVENTS_OWN_SECONDS:
                self._meter.stood_still(seconds)
