"""Steering: what was asked of work that goes on, as the process that does it sees it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from amigo_local.domain.errors import Cancelled
from amigo_local.engine.control import Command

_WAKE_SECONDS = 0.5
"""On Windows a wait without an end can't be interrupted by Ctrl-C."""


class Steering:
    """Commands come from any thread, or from a signal handler; the work looks here at each of its events."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._changed = threading.Condition()  # over an RLock: a signal handler may come in between
        self._cancelled = self._paused = self._stopping = False
        self._waiting = 0
        self._waiting_since = self._waited_seconds = 0.0

    def obey(self, command: Command) -> None:
        with self._changed:
            if command == "pause":
                self._paused = not (self._stopping or self._cancelled)
            else:
                self._paused = False
                self._stopping = self._stopping or command == "stop"
                self._cancelled = self._cancelled or command == "cancel"
            self._changed.notify_all()

    @property
    def cancelled(self) -> bool:
        return self._cancelled

    @property
    def paused(self) -> bool:
        return self._paused

    def stop_asked(self) -> bool:
        """Whether the work is to end at the next point that it can go on from without losing anything."""
        return self._stopping

    def standing(self) -> tuple[Command, ...]:
        """What holds now: a worker that has just been started is to be told."""
        with self._changed:
            if self._cancelled:
                return ("cancel",)
            if self._stopping:
                return ("stop",)
            return ("pause",) if self._paused else ()

    def raise_if_cancelled(self) -> None:
        if self._cancelled:
            raise Cancelled

    def wait_cancelled(self, seconds: float) -> None:
        """So long at most; raises Cancelled as soon as that is asked."""
        with self._changed:
            self._changed.wait_for(lambda: self._cancelled, seconds)
        self.raise_if_cancelled()

    def wait_while_paused(self) -> None:
        """Raises Cancelled when that is what ends the pause, or was asked before."""
        with self._changed:
            if self._paused:
                self._waiting += 1
                if self._waiting == 1:
                    self._waiting_since = self._clock()
                try:
                    while self._paused:
                        self._changed.wait(_WAKE_SECONDS)
                finally:
                    self._waiting -= 1
                    if not self._waiting:
                        self._waited_seconds += self._clock() - self._waiting_since
        self.raise_if_cancelled()

    def seconds(self) -> float:
        """A clock that stands still while the work waits, so that a pause counts into no speed."""
        with self._changed:
            now = self._waiting_since if self._waiting else self._clock()
            return now - self._waited_seconds
