"""Rows of a GGUF's tensors as float32, read from the file a few at a time."""

from __future__ import annotations

from collections.abc import Iterator
from types import TracebackType
from typing import Self

import gguf
import numpy as np
import numpy.typing as npt

from amigo_local.domain.errors import InputError
from amigo_local.domain.recipe import Dtype
from amigo_local.weights.gguf_header import GgufHeader, TensorInfo

Rows = npt.NDArray[np.float32]
"""(rows, row length) float32."""
Bytes = npt.NDArray[np.uint8]

CHUNK_ELEMENTS = 4 << 20  # 16 MiB of float32; gguf-py needs a few times that for its intermediates
COPY_BYTES = 16 << 20
F16_MAX = 65504.0  # largest finite half-precision number


class TensorFile:
    """An open GGUF from which rows are read; holds one chunk in memory, never a tensor."""

    def __init__(self, header: GgufHeader) -> None:
        self.header = header
        self._file = header.path.open("rb")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()

    def _read(self, offset: int, count: int) -> Bytes:
        self._file.seek(offset)
        raw = np.fromfile(self._file, np.uint8, count)
        if raw.size != count:
            raise InputError(f"{self.header.path}: became shorter while it was read", "don't change it meanwhile")
        return raw

    def rows(self, tensor: TensorInfo, start: int, stop: int) -> Rows:
        """Rows [start, stop) dequantized; a vector is one row."""
        kind = tensor.type
        row_length = tensor.dimensions[0]
        row_bytes = row_length // kind.block_size * kind.block_bytes
        raw = self._read(tensor.offset + start * row_bytes, (stop - start) * row_bytes)
        try:
            values = gguf.quants.dequantize(raw.reshape(stop - start, row_bytes), gguf.GGMLQuantizationType(kind.id))
        except NotImplementedError as error:
            raise InputError(
                f"{self.header.path}: tensor {tensor.name} of type {kind.name} can't be dequantized",
                "take another quantization of this model",
            ) from error
        return np.ascontiguousarray(values, dtype=np.float32).reshape(stop - start, row_length)

    def chunks(self, tensor: TensorInfo, multiple_of: int = 1) -> Iterator[tuple[int, Rows]]:
        """(first row, rows) over the whole tensor, each chunk but the last a multiple of so many rows."""
        total = tensor.elements // tensor.dimensions[0]
        step = max(1, CHUNK_ELEMENTS // tensor.dimensions[0] // multiple_of) * multiple_of
        for start in range(0, total, step):
            yield start, self.rows(tensor, start, min(start + step, total))

    def raw(self, tensor: TensorInfo) -> Iterator[Bytes]:
        """The tensor's bytes as they are in the file, piece by piece."""
        for start in range(0, tensor.nbytes, COPY_BYTES):
            yield self._read(tensor.offset + start, min(COPY_BYTES, tensor.nbytes - start))


def read_vector(header: GgufHeader, name: str) -> Rows:
    """A small tensor at once, flat."""
    tensor = header.tensor(name)
    with TensorFile(header) as file:
        return file.rows(tensor, 0, tensor.elements // tensor.dimensions[0]).reshape(-1)


def to_bytes(values: Rows, dtype: Dtype | str) -> bytes:
    """Little-endian bytes in f32, f16 or bf16, rounded to nearest even."""
    kind = dtype.upper()
    if kind == "F32":
        return values.astype("<f4", copy=False).tobytes()
    if kind == "F16":
        with np.errstate(over="ignore"):  # callers check what overflowed
            return values.astype("<f2").tobytes()
    encoded: bytes = gguf.quants.quantize(values, gguf.GGMLQuantizationType.BF16).tobytes()
    return encoded
