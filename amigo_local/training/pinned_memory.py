"""Layer packs in page-locked host memory, for a host with RAM to spare: copies then need no staging."""

from __future__ import annotations

import mmap
from typing import Protocol

import torch

from amigo_local.domain.errors import AmigoError
from amigo_local.domain.units import format_size
from amigo_local.training.layer_pack import LayerPack


class PageLock(Protocol):
    def lock(self, memory: torch.Tensor) -> None:
        """Page-locks uint8 (n,) in place. Raises RuntimeError where the system won't."""

    def unlock(self, memory: torch.Tensor) -> None:
        """Waits for what the card still reads there."""


class PinnedMemory:
    """Holds packs until it is closed. Close the streamers that read it first.

    Registered, not allocated: torch's pinned allocator rounds up to a power of two (5.3 GB would take 8). Under
    Windows (WDDM) page-locked memory has been reported to count against VRAM, so a ring is the default.
    """

    def __init__(self, device: PageLock) -> None:
        self._device = device
        self._locked: list[torch.Tensor] = []

    def hold(self, pack: LayerPack) -> LayerPack:
        """A copy of the pack in page-locked memory: a mapped file can't be locked itself on every system."""
        # Anonymous pages of its own: what is locked begins and ends with a page.
        flat = torch.frombuffer(mmap.mmap(-1, pack.nbytes), dtype=torch.uint8)
        flat.copy_(pack.flat)
        try:
            self._device.lock(flat)
        except RuntimeError as error:
            held = sum(memory.numel() for memory in self._locked)
            raise AmigoError(
                f"can't page-lock {format_size(pack.nbytes)} beyond {format_size(held)}: {error}",
                "set train.memory.staging to ring, which locks 64 MiB in all",
            ) from error
        self._locked.append(flat)
        return LayerPack(flat, pack.tensors)

    def close(self) -> None:
        while self._locked:
            self._device.unlock(self._locked.pop())
