"""The NF4 store: a frozen base for training on disk, one segment a decoder layer, opened by mapping it."""

from __future__ import annotations

import mmap
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import torch

from amigo_local.training.layer_pack import LayerPack, PackedTensor, Part
from amigo_local.training.nf4_index import (
    LAYERS_FILE,
    SEGMENT_ALIGNMENT,
    SMALL_FILE,
    TABLES_FILE,
    StoreIndex,
    aligned,
    check_store,
    located,
    part_bytes,
)


class Table(NamedTuple):
    """A table's bytes, mapped."""

    raw: torch.Tensor
    """(rows, row bytes) uint8."""
    type_name: str
    columns: int


class Nf4Store:
    """An open store. All is mapped copy-on-write: nothing is read before it is used, and a write stays in memory."""

    def __init__(
        self, directory: Path, index: StoreIndex, packs: tuple[LayerPack, ...], tables: dict[str, Table]
    ) -> None:
        self.directory, self.index, self.packs, self.tables = directory, index, packs, tables

    def small(self) -> dict[str, torch.Tensor]:
        """Norms and biases by their names in the checkpoint, float32."""
        from safetensors.torch import load_file

        tensors: dict[str, torch.Tensor] = load_file(self.directory / SMALL_FILE)
        return tensors


def layer_layout(linears: Iterable[tuple[str, int, int]]) -> tuple[tuple[PackedTensor, ...], int]:
    """(tensors, bytes) of the pack of a layer's (module, rows, columns), as layer_pack.pack_layer lays it out."""
    tensors: list[PackedTensor] = []
    offset = 0
    for module, rows, columns in linears:
        packed, absmax, absmax2 = part_bytes(rows * columns)
        parts: tuple[tuple[Part, int, tuple[int, ...]], ...] = (
            ("packed", packed, (packed, 1)),
            ("absmax", absmax, (absmax,)),
            ("absmax2", absmax2, (absmax2 // 4,)),
        )
        for part, nbytes, shape in parts:
            tensors.append(PackedTensor(module, part, offset, nbytes, shape))
            offset += aligned(nbytes)
    return tuple(tensors), offset


def open_store(directory: Path, *, source_digest: str | None = None, source: Path | None = None) -> Nf4Store:
    """Maps a store, and the tables in its source, once `check_store` (which has the arguments) finds all as it was: a
    mapped file that is too short would kill the process (SIGBUS). Raises InputError as that does."""
    index = check_store(directory, source_digest=source_digest, source=source)
    packs = []
    for layer in index.layers:
        tensors, nbytes = layer_layout((linear.module, linear.rows, linear.columns) for linear in layer.linears)
        assert nbytes == layer.nbytes, "another layout needs another version"
        packs.append(LayerPack(_map(directory / LAYERS_FILE, layer.offset, nbytes), tensors))
    tables = {}
    for table in index.tables:
        path = directory / TABLES_FILE if table.file is None else located(index.files[table.file], source)
        raw = _map(path, table.offset, table.nbytes).view(table.rows, -1)
        tables[table.name] = Table(raw, table.type_name, table.columns)
    return Nf4Store(directory, index, tuple(packs), tables)


def _map(path: Path, offset: int, nbytes: int) -> torch.Tensor:
    """(nbytes,) uint8. A mapping a segment: Linux refuses to map more than there is memory copy-on-write at once."""
    start = offset // SEGMENT_ALIGNMENT * SEGMENT_ALIGNMENT
    with path.open("rb") as file:
        mapped = mmap.mmap(file.fileno(), offset - start + nbytes, access=mmap.ACCESS_COPY, offset=start)
    # Sliced, so that the tensor's storage_offset says how what follows is aligned.
    return torch.frombuffer(mapped, dtype=torch.uint8)[offset - start :]
