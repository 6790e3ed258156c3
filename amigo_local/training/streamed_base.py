"""The base for training from an NF4 store: mapped on a processor, resident and streamed layers on a card."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from amigo_local.domain.memory_plan import MemoryPlan
from amigo_local.training.buffer_sizes import KEEP_DECODED_BYTES
from amigo_local.training.copy_engine import CopyEngine, SyncEngine, Traffic
from amigo_local.training.frozen_base import FrozenBase, LoadedBase
from amigo_local.training.layer_pack import LayerPack
from amigo_local.training.layer_streaming import LayerStreamer, initialise_magnitudes, spread_evenly
from amigo_local.training.nf4_store import Nf4Store, open_store


class StreamedLayers:
    """A LayerStreamer with the engines and the page-locked memory that it reads through, closed in the right order."""

    def __init__(self, streamer: LayerStreamer, layers: Sequence[nn.Module], resources: ExitStack) -> None:
        self.streamer, self._layers, self._resources = streamer, layers, resources

    def reset(self) -> None:
        self.streamer.reset()

    def initialise_magnitudes(self) -> None:
        initialise_magnitudes(self.streamer, self._layers)

    def traffic(self) -> Traffic:
        return self.streamer.traffic()

    def close(self) -> None:
        self._resources.close()


def base_from_store(
    directory: Path, *, name: str, source_digest: str | None = None, source: Path | None = None
) -> FrozenBase:
    """name: what the adapter says it belongs to. source_digest, source: as open_store takes them.

    Raises InputError for a store that is damaged or of another model, or whose source is gone.
    """
    store = open_store(directory, source_digest=source_digest, source=source)
    embedding = next(table for table in store.index.tables if table.name.endswith("embed_tokens.weight"))
    return FrozenBase(
        name=name,
        # Not of index.json, which also says where the source lies.
        digest=f"{store.index.source_digest} NF4 by bitsandbytes {store.index.bitsandbytes}",
        vocabulary=embedding.rows,
        where=directory,
        load=lambda plan: load(store, plan),
    )


def load(store: Nf4Store, plan: MemoryPlan) -> LoadedBase:
    """Every tensor where the plan has it, on the device that trains."""
    from amigo_local.training.base import compute_dtype, training_device

    device = training_device(plan.device)
    dtype = compute_dtype(device)
    if device.type == "cpu":
        return LoadedBase(_model(store, plan, device, dtype, SyncEngine(), KEEP_DECODED_BYTES))
    with ExitStack() as resources:
        engines = _engines(device, plan, resources)
        packs = _packs(store, plan, device, resources)
        return stream(store, plan, device, dtype, engines, packs, resources)


class Engines(NamedTuple):
    head: CopyEngine
    """For tiles of the head."""
    layers: CopyEngine


def stream(
    store: Nf4Store,
    plan: MemoryPlan,
    device: torch.device,
    dtype: torch.dtype,
    engines: Engines,
    packs: Sequence[LayerPack],
    resources: ExitStack,
) -> LoadedBase:
    """The base with some layers resident on `device` and the others streamed to it.

    resources: closed with the result, or at once where this fails.
    """
    with resources:
        model = _model(store, plan, device, dtype, engines.head, 0)
        layers = model.model.layers
        resident = spread_evenly(len(layers), plan.streamed_layers)
        streamer = LayerStreamer(
            layers, packs, device, engine=engines.layers, resident=resident, slots=max(1, plan.slots)
        )
        resources.callback(streamer.close)
        return LoadedBase(model, StreamedLayers(streamer, layers, resources.pop_all()))


def _model(
    store: Nf4Store,
    plan: MemoryPlan,
    device: torch.device,
    dtype: torch.dtype,
    head_engine: CopyEngine,
    keep_decoded_bytes: int,
) -> Any:
    from amigo_local.training.nf4_model import build_model
    from amigo_local.training.tiled_mlp import tile_mlps

    model = build_model(
        store,
        dtype,
        device=device,
        head_tile_rows=plan.head_tile_rows,
        engine=head_engine,
        keep_decoded_bytes=keep_decoded_bytes,
    )
    if plan.mlp_tile_tokens is not None:
        tile_mlps(model.model.layers, plan.mlp_tile_tokens)
    return model


def _engines(device: torch.device, plan: MemoryPlan, resources: ExitStack) -> Engines:
    """The head's table is a mapped file whatever the layers are, so its tiles
    always go through a ring; pinned layers have an engine of their own, which needs none."""
    from amigo_local.training.cuda_engine import CudaEngine

    ring = CudaEngine(device, "ring")
    resources.callback(ring.close)
    if plan.staging == "ring":
        return Engines(ring, ring)
    pinned = CudaEngine(device, "pinned")
    resources.callback(pinned.close)
    return Engines(ring, pinned)


def _packs(store: Nf4Store, plan: MemoryPlan, device: torch.device, resources: ExitStack) -> tuple[LayerPack, ...]:
    """The store's, those that will be streamed page-locked where the plan says so."""
    if plan.staging == "ring":
        return store.packs
    from amigo_local.training.cuda_engine import CudaDevice
    from amigo_local.training.pinned_memory import PinnedMemory

    pinned = PinnedMemory(CudaDevice(device))
    resources.callback(pinned.close)
    resident = spread_evenly(len(store.packs), plan.streamed_layers)
    return tuple(pack if index in resident else pinned.hold(pack) for index, pack in enumerate(store.packs))
