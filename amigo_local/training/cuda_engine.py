"""Copies to a CUDA card on a stream of its own: the thin layer under `staging_ring`."""

from __future__ import annotations

import torch

from amigo_local.domain.memory_plan import Staging
from amigo_local.training.buffer_sizes import CHUNK_BYTES, CHUNKS
from amigo_local.training.staging_ring import DeviceEngine, Event, StagingRing


class CudaDevice:
    """`staging_ring.Device` on torch.cuda. Computing is what the calling thread's current stream does."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._runtime = torch.cuda.cudart()
        self._copies = torch.cuda.Stream(device)

    def page_locked(self, nbytes: int) -> torch.Tensor:
        return torch.empty(nbytes, dtype=torch.uint8, pin_memory=True)

    def computing_now(self, *, timed: bool) -> Event:
        return self._record(torch.cuda.current_stream(self._device), timed)

    def copying_now(self, *, timed: bool) -> Event:
        return self._record(self._copies, timed)

    def _record(self, stream: torch.cuda.Stream, timed: bool) -> Event:
        # blocking: a thread that waits for it sleeps instead of spinning.
        event = torch.cuda.Event(enable_timing=timed, blocking=True)
        event.record(stream)
        return event

    def hold_computing(self, until: Event) -> None:
        torch.cuda.current_stream(self._device).wait_event(until)

    def hold_copying(self, until: Event) -> None:
        self._copies.wait_event(until)

    def send(self, target: torch.Tensor, source: torch.Tensor) -> None:
        with torch.cuda.stream(self._copies):
            target.copy_(source, non_blocking=True)

    def lock(self, memory: torch.Tensor) -> None:
        """Raises torch.cuda.CudaError where the system locks no more."""
        flags = 0
        torch.cuda.check_error(int(self._runtime.cudaHostRegister(memory.data_ptr(), memory.numel(), flags)))

    def unlock(self, memory: torch.Tensor) -> None:
        torch.cuda.synchronize(self._device)  # copies that read it may be under way
        torch.cuda.check_error(int(self._runtime.cudaHostUnregister(memory.data_ptr())))

    def reach(self, event: Event) -> None:
        event.synchronize()

    def reached(self, event: Event) -> bool:
        return bool(event.query())

    def seconds_between(self, start: Event, end: Event) -> float:
        return float(start.elapsed_time(end)) / 1000

    def close(self) -> None:
        self._copies.synchronize()


class CudaEngine(DeviceEngine):
    """ring: sources may be mapped files. pinned: they are `PinnedMemory`; no thread and no staging, but see there."""

    def __init__(
        self, device: torch.device, staging: Staging = "ring", *, chunk_bytes: int = CHUNK_BYTES, chunks: int = CHUNKS
    ) -> None:
        cuda = CudaDevice(device)
        super().__init__(cuda, StagingRing(cuda, chunk_bytes, chunks) if staging == "ring" else None)
