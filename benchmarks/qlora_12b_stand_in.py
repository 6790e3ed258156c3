"""A base on a processor whose layers and head tiles are copied as if to a card, host to host."""

from __future__ import annotations

import time
from contextlib import ExitStack
from pathlib import Path

import torch

from amigo_local.domain.memory_plan import MemoryPlan
from amigo_local.training import streamed_base
from amigo_local.training.base import compute_dtype
from amigo_local.training.copy_engine import CopyEngine, ThreadedEngine
from amigo_local.training.frozen_base import LoadedBase
from amigo_local.training.host_table import HostTable
from amigo_local.training.nf4_store import open_store
from amigo_local.training.staging_ring import DeviceEngine, StagingRing
from tests.support.simulated_device import Event, SimulatedDevice


def load_on_processor(store: Path, plan: MemoryPlan) -> LoadedBase:
    """Staging `ring`: the product's ring and engine on a simulated card; `pinned`: a thread that copies."""
    device = torch.device("cpu")
    engine: CopyEngine = _ring_engine() if plan.staging == "ring" else ThreadedEngine()
    resources = ExitStack()
    resources.callback(engine.close)
    opened, engines = open_store(store), streamed_base.Engines(engine, engine)
    loaded = streamed_base.stream(opened, plan, device, compute_dtype(device), engines, opened.packs, resources)
    loaded.model.lm_head.table.__class__ = _CopiedTable
    return loaded


def _ring_engine() -> DeviceEngine:
    device = _ClockedDevice()
    return DeviceEngine(device, StagingRing(device, chunk_bytes=1 << 18, chunks=2))


class _ClockedDevice(SimulatedDevice):
    """Its events bear the time of day, so that seconds of a copy are seconds."""

    def _stamp(self, event: Event) -> Event:
        event.is_reached, event.at = True, time.perf_counter()
        return event


class _CopiedTable(HostTable):
    tiles = HostTable.streamed_tiles
