"""Gauges of a running training: memory now and at its peak, and how the copies to the card go."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Protocol

import psutil
import torch

from amigo_local.training.copy_engine import Traffic

ReadMemory = Callable[[], dict[str, float]]
"""Bytes by metric name. Reads counters only: never waits for the device."""


class Streaming(Protocol):
    """LayerStreamer, as far as its copies are to be read."""

    def traffic(self) -> Traffic: ...


class Gauges:
    """Read once a logged step; what is a rate is one since the last reading."""

    def __init__(self, memory: tuple[ReadMemory, ...], streaming: Streaming | None = None) -> None:
        self._memory, self._streaming = memory, streaming
        self._last = streaming.traffic() if streaming is not None else Traffic()

    def read(self) -> dict[str, float]:
        values: dict[str, float] = {}
        for read in self._memory:
            values |= read()
        if self._streaming is not None:
            now = self._streaming.traffic()
            lately, self._last = now.since(self._last), now
            if (rate := lately.gigabytes_per_second) is not None:
                values["pcie_bytes_per_second"] = 1e9 * rate
                values["copies_hidden"] = lately.hidden
        return values


def gauges_for(device: torch.device, streaming: Streaming | None = None) -> Gauges:
    """The machine's own: RAM everywhere, VRAM where the device is a card."""
    memory = (read_ram, lambda: read_vram(device)) if device.type == "cuda" else (read_ram,)
    return Gauges(memory, streaming)


def read_ram() -> dict[str, float]:
    """Resident memory of this process, pages of a mapped store among it; the kernel may take those back."""
    return {"ram_bytes": float(psutil.Process().memory_info().rss), "ram_peak_bytes": float(peak_rss_bytes())}


def read_vram(device: torch.device) -> dict[str, float]:
    """torch's tensors, and all that the driver has given away of the card, to this process and to others."""
    free, total = torch.cuda.mem_get_info(device)
    return {
        "vram_bytes": float(torch.cuda.memory_allocated(device)),
        "vram_peak_bytes": float(torch.cuda.max_memory_allocated(device)),
        "vram_card_bytes": float(total - free),
    }


def peak_rss_bytes() -> int:
    """Since the process started."""
    if sys.platform == "win32":
        return int(psutil.Process().memory_info().peak_wset)
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # macOS counts bytes, Linux KiB
