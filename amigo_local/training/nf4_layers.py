"""The layers of an NF4 store, quantized and written one at a time, so that a kill costs no more than one of them."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from concurrent.futures import Executor
from pathlib import Path
from typing import IO, Protocol

import msgspec
import torch

from amigo_local.domain.errors import InputError
from amigo_local.domain.events import Emit, Note, Progress
from amigo_local.training.layer_pack import PackedTensor
from amigo_local.training.nf4_index import (
    BLOCK,
    LAYERS_FILE,
    NESTED_BLOCK,
    SEGMENT_ALIGNMENT,
    VERSION,
    LayerSegment,
    Nf4Linear,
)
from amigo_local.training.nf4_quantization import Floats, Nf4Scales, NonFinite, TensorQuantizer
from amigo_local.training.nf4_store import layer_layout

JOURNAL_FILE = "layers.jsonl"  # while building: what the store is of, then a line for each layer that is on disk


class RawTable(Protocol):
    """Where a matrix lies in its source (weights.weight_source.RawTable)."""

    @property
    def path(self) -> Path: ...
    @property
    def offset(self) -> int: ...
    @property
    def nbytes(self) -> int: ...
    @property
    def type_name(self) -> str: ...
    @property
    def rows(self) -> int: ...
    @property
    def columns(self) -> int: ...


class Weights(Protocol):
    """Float32 weights under a checkpoint's names (weights.weight_source: of a GGUF or of a checkpoint)."""

    @property
    def shapes(self) -> Mapping[str, tuple[int, ...]]: ...

    def tiles(self, name: str) -> Iterator[tuple[int, Floats]]:
        """(first row, rows) over the whole tensor in order."""

    def raw_table(self, name: str) -> RawTable: ...


class StoreIdentity(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What layers must agree in to belong to one store."""

    source_digest: str
    bitsandbytes: str
    layers: tuple[tuple[tuple[str, int, int], ...], ...]
    version: int = VERSION
    blocksize: int = BLOCK
    nested_blocksize: int = NESTED_BLOCK


def write_layers(
    source: Weights, identity: StoreIdentity, out_dir: Path, pool: Executor, emit: Emit
) -> tuple[LayerSegment, ...]:
    """Appends the layers that aren't there yet: bytes, then, once they are on the disk, a line in the journal."""
    layouts = [layer_layout(layer) for layer in identity.layers]
    total, done = sum(nbytes for _, nbytes in layouts), 0
    path = out_dir / LAYERS_FILE
    with (out_dir / JOURNAL_FILE).open("a+b") as journal, path.open("a+b") as file:
        segments = _resume(journal, file, identity)
        if segments:
            emit(Note(f"going on after layer {len(segments)} of {len(identity.layers)}, which are on disk"))
            done = sum(segment.nbytes for segment in segments)
        for i in range(len(segments), len(identity.layers)):
            tensors, nbytes = layouts[i]
            flat = torch.zeros(nbytes, dtype=torch.uint8)
            linears = []
            for at, (module, rows, columns) in enumerate(identity.layers[i]):
                parts = tensors[3 * at : 3 * at + 3]
                scales = _quantize(source, f"model.layers.{i}.{module}.weight", rows * columns, flat, parts, pool)
                linears.append(Nf4Linear(module, rows, columns, scales.offset, scales.error))
                done += sum(part.nbytes for part in parts)
                emit(Progress("quantizing to NF4", done, total, "bytes"))
            end = file.seek(0, os.SEEK_END)
            offset = -(-end // SEGMENT_ALIGNMENT) * SEGMENT_ALIGNMENT
            file.truncate(offset)
            file.write(flat.numpy().data)
            sync(file)
            segments.append(LayerSegment(offset, nbytes, tuple(linears)))
            journal.write(msgspec.json.encode(segments[-1]) + b"\n")
            sync(journal)
            done = sum(segment.nbytes for segment in segments)
    emit(Progress("quantizing to NF4", total, total, "bytes"))
    return tuple(segments)


def _resume(journal: IO[bytes], file: IO[bytes], identity: StoreIdentity) -> list[LayerSegment]:
    """The layers that are on disk whole; both files are cut to them. Of another source's nothing is kept."""
    journal.seek(0)
    first, *lines = journal.read().splitlines(keepends=True) or [b""]
    header = msgspec.json.encode(identity) + b"\n"
    segments: list[LayerSegment] = []
    kept = len(header) if first == header else 0
    size = file.seek(0, os.SEEK_END)
    for line in lines if kept else ():
        try:
            segment = msgspec.json.decode(line, type=LayerSegment)
        except msgspec.MsgspecError:  # cut while it was written
            break
        if not line.endswith(b"\n") or segment.offset + segment.nbytes > size:
            break
        kept += len(line)
        segments.append(segment)
    journal.truncate(kept)
    if not kept:
        journal.write(header)
    sync(journal)
    file.truncate(segments[-1].offset + segments[-1].nbytes if segments else 0)
    return segments


def _quantize(
    source: Weights,
    name: str,
    elements: int,
    flat: torch.Tensor,
    parts: tuple[PackedTensor, ...],
    pool: Executor,
) -> Nf4Scales:
    """Quantizes a tensor into its places in the layer's bytes."""
    packed, absmax, absmax2 = (flat[part.offset : part.offset + part.nbytes] for part in parts)
    quantizer = TensorQuantizer(elements, packed, pool)
    try:
        for _, rows in source.tiles(name):
            quantizer.feed(rows)
        scales = quantizer.finish()
    except NonFinite as error:
        raise nonfinite(name, error.count) from error
    absmax.copy_(scales.codes)
    absmax2.copy_(scales.scales.view(torch.uint8))
    return scales


def nonfinite(name: str, count: int) -> InputError:
    return InputError(
        f"tensor {name} holds at least {count} values that are NaN, infinite or beyond bfloat16",
        "pull or download the model again",
    )


def sync(file: IO[bytes]) -> None:
    file.flush()
    os.fsync(file.fileno())


def write_synced(path: Path, data: bytes) -> None:
    partial = path.with_name(f"{path.name}.partial")
    with partial.open("wb") as file:
        file.write(data)
        sync(file)
    partial.replace(path)
