"""How bytes get from the host into fixed device buffers beside the computing, and how the computing waits for them."""

from __future__ import annotations

from typing import Any, Protocol

import torch

Mark = Any
"""A point in the order of computing; None where computing is synchronous."""
Ticket = Any
"""A copy under way; None where it is done already."""


class CopyEngine(Protocol):
    """One order of copies beside one order of computing. Called from the thread that computes."""

    def mark(self) -> Mark:
        """The present point in the order of computing: everything that was started up to now."""

    def copy(self, target: torch.Tensor, source: torch.Tensor, after: Mark) -> Ticket:
        """Starts copying `source` (host) into `target` (device), both uint8 (n,), not before `after` is reached."""

    def wait(self, ticket: Ticket) -> None:
        """What is computed from now on sees the copied bytes."""

    def close(self) -> None:
        """Waits for what is under way and frees threads, streams and staging buffers."""


class SyncEngine:
    """Copies at once: for a host without a second processor to copy beside it."""

    def mark(self) -> Mark:
        return None

    def copy(self, target: torch.Tensor, source: torch.Tensor, after: Mark) -> Ticket:
        target.copy_(source)
        return None

    def wait(self, ticket: Ticket) -> None:
        return None

    def close(self) -> None:
        return None
