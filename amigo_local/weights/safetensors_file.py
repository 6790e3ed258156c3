"""Safetensors checkpoints read and written tensor by tensor, sharded with an index as transformers expects."""

from __future__ import annotations

import json
import math
import os
import struct
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

import msgspec
import numpy as np

from amigo_local.domain.errors import InputError
from amigo_local.domain.units import GIB
from amigo_local.weights.ggml_types import TYPES_BY_NAME
from amigo_local.weights.kernels import Rows, load_kernels
from amigo_local.weights.tensor_rows import CHUNK_ELEMENTS, to_bytes

SHARD_BYTES = 2 * GIB
SINGLE_FILE, INDEX_FILE = "model.safetensors", "model.safetensors.index.json"
_ITEM_BYTES = {"F32": 4, "F16": 2, "BF16": 2}
_PIECE_BYTES = 16 << 20
_MAX_HEADER_BYTES = 100_000_000  # MAX_HEADER_SIZE in safetensors/src/tensor.rs


class StoredTensor(msgspec.Struct, frozen=True):
    """Where one tensor lies: `offset` in bytes from the start of `path`; dtype is safetensors' F32, F16 or BF16."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    path: Path
    offset: int

    @property
    def elements(self) -> int:
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        return self.elements * _ITEM_BYTES[self.dtype]

    @property
    def row_length(self) -> int:
        return self.shape[-1] if self.shape else 1

    def rows(self, start: int, stop: int) -> Rows:
        """Rows [start, stop) as (rows, row length) float32; a vector is one row."""
        width = self.row_length * _ITEM_BYTES[self.dtype]
        raw = np.frombuffer(self._read(start * width, (stop - start) * width), np.uint8)
        values = load_kernels().dequantize(TYPES_BY_NAME[self.dtype].id, raw, (stop - start) * self.row_length)
        return values.reshape(stop - start, self.row_length)

    def _read(self, first: int, count: int) -> bytes:
        with self.path.open("rb") as file:
            file.seek(self.offset + first)
            raw = file.read(count)
        if len(raw) != count:
            raise InputError(f"{self.path}: became shorter while it was read", "don't change it meanwhile")
        return raw

    def same_bytes(self, other: StoredTensor) -> bool:
        """Whether both hold the same bytes, compared a piece at a time."""
        starts = range(0, self.nbytes, _PIECE_BYTES)
        sizes = [min(_PIECE_BYTES, self.nbytes - start) for start in starts]
        return self.nbytes == other.nbytes and all(
            self._read(start, size) == other._read(start, size) for start, size in zip(starts, sizes, strict=True)
        )

    def chunks(self, multiple_of: int = 1) -> Iterator[tuple[int, Rows]]:
        """(first row, rows) over the whole tensor, each chunk but the last a multiple of so many rows."""
        total = self.elements // self.row_length
        step = max(1, CHUNK_ELEMENTS // self.row_length // multiple_of) * multiple_of
        for start in range(0, total, step):
            yield start, self.rows(start, min(start + step, total))

    def array(self) -> Rows:
        """The whole tensor in its own shape: for adapters and vectors."""
        return self.rows(0, self.elements // self.row_length).reshape(self.shape)


def read_safetensors(path: Path) -> dict[str, StoredTensor]:
    """The tensor table of one file. Raises InputError when it is damaged or in another number format."""
    hint = "write or download the checkpoint again"
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            prefix = file.read(8)
            length = struct.unpack("<Q", prefix)[0] if len(prefix) == 8 else size
            if length > min(size - 8, _MAX_HEADER_BYTES):
                raise InputError(f"{path}: not a safetensors file, or truncated", hint)
            table = json.loads(file.read(length))
    except OSError as error:
        raise InputError(f"{path}: can't be read: {error.strerror or error}", "check the path") from error
    except ValueError as error:
        raise InputError(f"{path}: damaged safetensors header: {error}", hint) from error
    try:
        entries = {name: entry for name, entry in table.items() if name != "__metadata__"}
        return {name: _stored(path, name, entry, 8 + length, size) for name, entry in entries.items()}
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise InputError(f"{path}: damaged safetensors header: {error!r}", hint) from error


def _stored(path: Path, name: str, entry: dict[str, Any], data_offset: int, file_size: int) -> StoredTensor:
    if entry["dtype"] not in _ITEM_BYTES:
        raise InputError(
            f"{path}: tensor {name} is {entry['dtype']}, expected one of {', '.join(_ITEM_BYTES)}",
            "give an unquantized checkpoint",
        )
    start, end = entry["data_offsets"]
    if not all(type(number) is int for number in (start, end, *entry["shape"])):
        raise TypeError(f"{name} has a shape or place that is no whole number")
    tensor = StoredTensor(name, entry["dtype"], tuple(entry["shape"]), path, data_offset + start)
    if min(tensor.shape, default=1) < 1 or start < 0 or tensor.nbytes != end - start or data_offset + end > file_size:
        raise InputError(
            f"{path}: tensor {name} doesn't fit its place in the file", "write or download the checkpoint again"
        )
    return tensor


def read_checkpoint(directory: Path) -> dict[str, StoredTensor]:
    """The tensors of a checkpoint directory in file order. Raises InputError when it holds no whole checkpoint."""
    if (directory / INDEX_FILE).exists():
        try:
            index = json.loads((directory / INDEX_FILE).read_text("utf-8"))
            files = sorted(set(index["weight_map"].values()))
            if not all(isinstance(name, str) for name in files):
                raise TypeError("a file's name is no text")
        except (OSError, KeyError, TypeError, ValueError, AttributeError) as error:
            hint = "download or unpack the checkpoint again"
            raise InputError(f"{directory / INDEX_FILE}: can't be read: {error!r}", hint) from error
    elif (directory / SINGLE_FILE).exists():
        files = [SINGLE_FILE]
    else:
        raise InputError(
            f"{directory}: holds neither {SINGLE_FILE} nor {INDEX_FILE}",
            "give a checkpoint directory; `amigo-local unpack REF --out DIR` makes one",
        )
    missing = [name for name in files if not (directory / name).exists()]
    if missing:
        raise InputError(f"{directory}: shard {missing[0]} is missing", "download or unpack the checkpoint again")
    tensors: dict[str, StoredTensor] = {}
    for name in files:
        tensors |= read_safetensors(directory / name)
    return tensors


class PlannedTensor(msgspec.Struct, frozen=True):
    """A tensor to be written, in row-major shape and safetensors' dtype name."""

    name: str
    shape: tuple[int, ...]
    dtype: str

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * _ITEM_BYTES[self.dtype]


class CheckpointWriter:
    """Writes planned tensors in order, opening the next shard when one is full.

    `with CheckpointWriter(...) as writer: writer.append(tensor, rows)…`. The caller writes into a directory that
    isn't final yet: shards carry their final names at once.
    """

    def __init__(self, directory: Path, plan: Sequence[PlannedTensor], shard_bytes: int = SHARD_BYTES) -> None:
        self._directory = directory
        self._shards = _into_shards(plan, shard_bytes)
        self._names = [
            SINGLE_FILE if len(self._shards) == 1 else f"model-{i + 1:05d}-of-{len(self._shards):05d}.safetensors"
            for i in range(len(self._shards))
        ]
        self._current = -1
        self._file: IO[bytes] | None = None
        self._left: dict[str, int] = {}

    def __enter__(self) -> Self:
        return self

    @property
    def shard_count(self) -> int:
        return len(self._shards)

    def append(self, tensor: PlannedTensor, rows: Rows) -> None:
        """The next rows of the tensor whose turn it is."""
        data = to_bytes(rows, tensor.dtype)
        if not self._left:
            self._open_next()
        if tensor.name != next(iter(self._left)) or data.nbytes > self._left[tensor.name]:
            raise AssertionError(f"{tensor.name} written out of its planned turn")
        assert self._file is not None
        self._file.write(data.data)
        self._left[tensor.name] -= data.nbytes
        if not self._left[tensor.name]:
            del self._left[tensor.name]

    def _open_next(self) -> None:
        self._close_file()
        self._current += 1
        shard = self._shards[self._current]
        table: dict[str, object] = {"__metadata__": {"format": "pt"}}
        offset = 0
        for tensor in shard:
            end = offset + tensor.nbytes
            table[tensor.name] = {"dtype": tensor.dtype, "shape": tensor.shape, "data_offsets": [offset, end]}
            offset = end
        header = json.dumps(table).encode()
        header += b" " * (-len(header) % 8)  # safetensors aligns the data to 8 bytes
        self._left = {tensor.name: tensor.nbytes for tensor in shard}
        self._file = (self._directory / self._names[self._current]).open("wb")
        self._file.write(struct.pack("<Q", len(header)) + header)

    def _close_file(self) -> None:
        if self._file is not None:
            self._file.flush()
            os.fsync(self._file.fileno())
            self._file.close()
            self._file = None

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not None:
            if self._file is not None:
                self._file.close()
            return
        self._close_file()
        if self._left or self._current + 1 != len(self._shards):
            raise AssertionError("the checkpoint ended before its plan")
        if len(self._shards) > 1:
            weight_map = {t.name: name for name, shard in zip(self._names, self._shards, strict=True) for t in shard}
            total = sum(tensor.nbytes for shard in self._shards for tensor in shard)
            index = {"metadata": {"total_size": total}, "weight_map": weight_map}
            (self._directory / INDEX_FILE).write_text(json.dumps(index, indent=1) + "\n", "utf-8")


def _into_shards(plan: Iterable[PlannedTensor], shard_bytes: int) -> list[list[PlannedTensor]]:
    shards: list[list[PlannedTensor]] = [[]]
    size = 0
    for tensor in plan:
        if shards[-1] and size + tensor.nbytes > shard_bytes:
            shards.append([])
            size = 0
        shards[-1].append(tensor)
        size += tensor.nbytes
    return shards
