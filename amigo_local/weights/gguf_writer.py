"""Writing a GGUF as a stream: metadata and tensor table first, then tensors in order, one chunk in memory."""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, NamedTuple, Self

from amigo_local.domain.errors import InputError
from amigo_local.weights.ggml_types import GGML_TYPES
from amigo_local.weights.gguf_cursor import HINT, open_source
from amigo_local.weights.gguf_header import ArrayRef, GgufHeader, Scalar, Value
from amigo_local.weights.kernels import Bytes

_VERSION = 3
ALIGNMENT = 32  # GGUF_DEFAULT_ALIGNMENT
UINT32, INT32, FLOAT32, BOOL, STRING, ARRAY = 4, 5, 6, 7, 8, 9  # enum gguf_type
_FORMATS = {UINT32: "I", INT32: "i", FLOAT32: "f", BOOL: "?"}


class PlannedTensor(NamedTuple):
    """One row of the table to be written; dimensions in GGML order."""

    name: str
    dimensions: tuple[int, ...]
    type_id: int

    @property
    def nbytes(self) -> int:
        kind = GGML_TYPES[self.type_id]
        return math.prod(self.dimensions) // kind.block_size * kind.block_bytes


def _text(value: str) -> bytes:
    data = value.encode()
    return struct.pack("<Q", len(data)) + data


def _kind(value: Scalar) -> int:
    """What llama.cpp's converter would write a value of this Python type as."""
    if isinstance(value, bool):
        return BOOL
    if isinstance(value, int):
        return UINT32
    return FLOAT32 if isinstance(value, float) else STRING


def _item(kind: int, value: Scalar) -> bytes:
    return _text(str(value)) if kind == STRING else struct.pack("<" + _FORMATS[kind], value)


def encode_field(key: str, value: Scalar | Sequence[Scalar]) -> bytes:
    """One metadata entry; whole numbers are uint32, in arrays int32 (as token types are)."""
    if isinstance(value, bool | int | float | str):
        kind = _kind(value)
        return _text(key) + struct.pack("<I", kind) + _item(kind, value)
    kind = _kind(value[0]) if len(value) else STRING
    kind = INT32 if kind == UINT32 else kind
    head = _text(key) + struct.pack("<IIQ", ARRAY, kind, len(value))
    return head + b"".join(_item(kind, item) for item in value)


def carried_fields(header: GgufHeader, changed: Mapping[str, Value]) -> list[bytes]:
    """The donor's entries byte for byte and in order, with `changed` ones encoded anew and new ones at the end."""
    fields = []
    with open_source(header.path) as file:
        for key, (start, end) in header.raw_fields.items():
            if key in changed:
                fields.append(_encode_value(header.path, key, changed[key]))
            else:
                fields.append(file.read(start, end - start))
    fields += [_encode_value(header.path, key, value) for key, value in changed.items() if key not in header.raw_fields]
    return fields


def _encode_value(donor: Path, key: str, value: Value) -> bytes:
    if isinstance(value, ArrayRef):
        raise AssertionError(f"{key} is still in its file")
    try:
        return encode_field(key, value)
    except (struct.error, OverflowError) as error:
        raise InputError(f"{donor}: {key} holds numbers that llama.cpp has no room for: {error}", HINT) from error


class GgufWriter:
    """`with GgufWriter(...) as writer:` then `write` the planned tensors' bytes, in order, in pieces of any size.

    Leaves an incomplete file when the body raises: write under a `.partial` name.
    """

    def __init__(
        self, path: Path, fields: Sequence[bytes], tensors: Sequence[PlannedTensor], alignment: int = 32
    ) -> None:
        self._tensors, self._alignment = tensors, alignment
        self._index = 0
        self._left = tensors[0].nbytes if tensors else 0
        self._file: BinaryIO = path.open("wb", buffering=0)
        self._write(encode_head(fields, tensors, alignment))

    def _write(self, data: bytes | memoryview) -> None:
        view = memoryview(data)
        while view:
            view = view[self._file.write(view) :]  # one call to the system writes at most 2 GiB

    def write(self, name: str, data: Bytes) -> None:
        """The next bytes of tensor `name`, whose turn it must be."""
        planned = self._tensors[self._index] if self._index < len(self._tensors) else None
        if planned is None or planned.name != name or data.nbytes > self._left:
            raise AssertionError(f"{data.nbytes} bytes of {name} written out of their planned turn")
        self._write(data.reshape(-1).data)
        self._left -= data.nbytes
        if not self._left:
            self._write(bytes(-planned.nbytes % self._alignment))
            self._index += 1
            self._left = self._tensors[self._index].nbytes if self._index < len(self._tensors) else 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()
        if kind is None and self._index != len(self._tensors):
            raise AssertionError("the GGUF ended before its plan")


def encode_head(fields: Sequence[bytes], tensors: Sequence[PlannedTensor], alignment: int = ALIGNMENT) -> bytes:
    """Everything before the data (ggml/docs/gguf.md); offsets count from the data's start."""
    parts = [b"GGUF" + struct.pack("<IQQ", _VERSION, len(tensors), len(fields)), *fields]
    offset = 0
    for tensor in tensors:
        rank = len(tensor.dimensions)
        parts.append(_text(tensor.name) + struct.pack(f"<I{rank}QIQ", rank, *tensor.dimensions, tensor.type_id, offset))
        offset += -(-tensor.nbytes // alignment) * alignment
    length = sum(map(len, parts))
    parts.append(bytes(-length % alignment))
    return b"".join(parts)


def file_bytes(fields: Sequence[bytes], tensors: Sequence[PlannedTensor], alignment: int = ALIGNMENT) -> int:
    """Size of the file that a writer with this plan makes."""
    padded = sum(-(-tensor.nbytes // alignment) * alignment for tensor in tensors)
    return len(encode_head(fields, tensors, alignment)) + padded
