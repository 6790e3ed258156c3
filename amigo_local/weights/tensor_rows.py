"""Rows of a GGUF's tensors as float32, read from the file a few at a time and decoded by ggml's kernels."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Self

import numpy as np

from amigo_local.domain.errors import AmigoError, InputError
from amigo_local.domain.recipe import Dtype
from amigo_local.weights.ggml_types import TYPES_BY_NAME
from amigo_local.weights.gguf_header import GgufHeader, TensorInfo
from amigo_local.weights.kernels import Bytes, Rows, load_kernels
from amigo_local.weights.rotary_order import to_checkpoint_rows

__all__ = ["Bytes", "Rows", "TensorFile", "count_nonfinite", "nonfinite_error", "read_vector", "to_bytes"]

CHUNK_ELEMENTS = 2 << 20  # 8 MiB of float32: beyond the caches, so that larger ones are no faster
COPY_BYTES = 16 << 20
F16_MAX = 65504.0  # largest finite half-precision number


class TensorFile:
    """An open GGUF, all parts of a split one, from which rows are read.

    Holds two chunks in memory, never a tensor: the next one is read while the caller works on this one. Reads go
    through file descriptors rather than a memory map, so that a file cut short meanwhile is an error and no SIGBUS;
    a file deleted meanwhile stays readable to the end (docs/measurements.md compares the two).
    """

    def __init__(self, header: GgufHeader, *, allow_nonfinite: bool = False) -> None:
        """With `allow_nonfinite` NaN and infinity pass, counted by tensor in `nonfinite`; else InputError."""
        self.header = header
        self.nonfinite: dict[str, int] = {}
        self._allow_nonfinite = allow_nonfinite
        self._kernels = load_kernels()
        self._files: dict[Path, BinaryIO] = {}
        self._reader = ThreadPoolExecutor(1, thread_name_prefix="gguf-reader")
        for path in header.files:
            try:
                self._files[path] = path.open("rb", buffering=0)
            except OSError as error:
                self.close()
                raise InputError(f"{path}: can't be read: {error.strerror or error}", "check the file") from error

    def close(self) -> None:
        self._reader.shutdown()
        for file in self._files.values():
            file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _read(self, tensor: TensorInfo, first: int, count: int) -> Bytes:
        """Bytes [first, first + count) of the tensor's data; only the reader's thread moves the file's position."""
        path = self.header.files[tensor.file]
        file = self._files[path]
        data = np.empty(count, np.uint8)
        view = data.data
        try:
            file.seek(tensor.offset + first)
            while view and (got := file.readinto(view)):  # type: ignore[attr-defined]  # FileIO has it
                view = view[got:]
        except OSError as error:
            raise AmigoError(f"{path}: can't be read: {error.strerror or error}", "check the disk") from error
        if view:
            raise InputError(
                f"{path}: became shorter while it was read, at tensor {tensor.name}",
                "pull or copy the model again, and don't change it meanwhile",
            )
        return data

    def _pieces(self, tensor: TensorInfo, step: int) -> Iterator[Bytes]:
        """The tensor's bytes, `step` at a time, each read while the one before is being used."""
        starts = iter(range(0, tensor.nbytes, step))

        def read(start: int) -> Bytes:
            return self._read(tensor, start, min(step, tensor.nbytes - start))

        coming = self._reader.submit(read, next(starts))
        for start in starts:
            piece, coming = coming.result(), self._reader.submit(read, start)
            yield piece
        yield coming.result()

    def raw(self, tensor: TensorInfo) -> Iterator[Bytes]:
        """The tensor's bytes as they are in the file, in pieces of whole rows."""
        width = _row_bytes(tensor)
        return self._pieces(tensor, max(1, COPY_BYTES // width) * width)

    def raw_rows(self, tensor: TensorInfo, start: int, stop: int) -> Bytes:
        """Rows [start, stop) as they are in the file, (rows, row bytes) uint8."""
        width = _row_bytes(tensor)
        raw = self._reader.submit(self._read, tensor, start * width, (stop - start) * width).result()
        return raw.reshape(stop - start, width)

    def rows(self, tensor: TensorInfo, start: int, stop: int) -> Rows:
        """Rows [start, stop) dequantized; a vector is one row."""
        rows = self._decode(tensor, self.raw_rows(tensor, start, stop).reshape(-1), None)
        self._look_for_nonfinite(tensor, rows)
        return rows

    def chunks(
        self, tensor: TensorInfo, multiple_of: int = 1, *, unpermute: int | None = None
    ) -> Iterator[tuple[int, Rows]]:
        """(first row, rows) over the whole tensor, each chunk but the last a multiple of so many rows.

        With `unpermute`, a head's size of which `multiple_of` is a multiple, query or key rows come in the
        checkpoint's order: quantized rows are moved, which are an eighth of the decoded ones.
        """
        step = max(1, CHUNK_ELEMENTS // tensor.dimensions[0] // multiple_of) * multiple_of
        start = found = 0
        for raw in self._pieces(tensor, step * _row_bytes(tensor)):
            rows = self._decode(tensor, raw, unpermute)
            count = count_nonfinite(rows)
            found += count
            if count and self._allow_nonfinite:
                self.nonfinite[tensor.name] = found
            if not found or self._allow_nonfinite:
                yield start, rows
            start += len(rows)
        if found and not self._allow_nonfinite:
            raise nonfinite_error(self.header.files[tensor.file], tensor.name, found)

    def _decode(self, tensor: TensorInfo, raw: Bytes, unpermute: int | None) -> Rows:
        kind, length, width = tensor.type, tensor.dimensions[0], _row_bytes(tensor)
        if not self._kernels.can_dequantize(kind.id):
            raise InputError(
                f"{self.header.path}: tensor {tensor.name} of type {kind.name} can't be dequantized",
                "take another quantization of this model",
            )
        if unpermute is not None:
            raw = np.ascontiguousarray(to_checkpoint_rows(raw.reshape(-1, width), unpermute))
        count = raw.size // width
        return self._kernels.dequantize(kind.id, raw, count * length).reshape(count, length)

    def _look_for_nonfinite(self, tensor: TensorInfo, rows: Rows) -> None:
        if count := count_nonfinite(rows):
            if not self._allow_nonfinite:
                raise nonfinite_error(self.header.files[tensor.file], tensor.name, count)
            self.nonfinite[tensor.name] = count


def _row_bytes(tensor: TensorInfo) -> int:
    return tensor.dimensions[0] // tensor.type.block_size * tensor.type.block_bytes


def count_nonfinite(rows: Rows) -> int:
    """How many values are NaN or infinite."""
    flat = rows.reshape(-1)
    # One pass without a temporary; a sum of squares overflows to infinity only where the values are worth counting.
    with np.errstate(over="ignore", invalid="ignore"):
        if np.isfinite(np.dot(flat, flat)):
            return 0
    return int(flat.size - np.count_nonzero(np.isfinite(flat)))


def largest_finite(rows: Rows) -> float:
    """The largest magnitude, whatever NaN and infinity are beside it."""
    largest = float(max(rows.max(initial=0.0), -rows.min(initial=0.0)))
    if np.isfinite(largest):
        return largest
    return float(np.abs(rows[np.isfinite(rows)]).max(initial=0.0))


def nonfinite_error(path: Path, name: str, count: int) -> InputError:
    return InputError(
        f"{path}: tensor {name} holds {count} values that are NaN or infinite",
        "pull or download the model again; --allow-nonfinite takes it as it is",
    )


def read_vector(header: GgufHeader, name: str) -> Rows:
    """A small tensor at once, flat."""
    tensor = header.tensor(name)
    with TensorFile(header) as file:
        return file.rows(tensor, 0, tensor.elements // tensor.dimensions[0]).reshape(-1)


def to_bytes(values: Rows, dtype: Dtype | str) -> Bytes:
    """Little-endian f32, f16 or bf16, rounded to nearest even; what a half can't hold becomes infinite."""
    flat = values.reshape(1, -1)
    return load_kernels().quantize(TYPES_BY_NAME[dtype.upper()].id, flat).reshape(-1)
