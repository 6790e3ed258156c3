"""Writing a GGUF as a stream: metadata first, then tensors in order, with one chunk in memory."""

from __future__ import annotations

import os
import struct
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Self

from amigo_local.weights.ggml_types import GGML_TYPES
from amigo_local.weights.gguf_header import ArrayRef, GgufHeader, Scalar, Value

_VERSION = 3
UINT32, INT32, FLOAT32, BOOL, STRING, ARRAY = 4, 5, 6, 7, 8, 9  # enum gguf_type
_FORMATS = {UINT32: "I", INT32: "i", FLOAT32: "f", BOOL: "?"}


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
    kind = _kind(value[0]) if value else STRING
    kind = INT32 if kind == UINT32 else kind
    head = _text(key) + struct.pack("<IIQ", ARRAY, kind, len(value))
    return head + b"".join(_item(kind, item) for item in value)


def carried_fields(header: GgufHeader, changed: Mapping[str, Value]) -> list[bytes]:
    """The donor's entries byte for byte and in order, with `changed` ones encoded anew and new ones at the end."""
    fields = []
    with header.path.open("rb") as file:
        for key, (start, end) in header.raw_fields.items():
            if key in changed:
                fields.append(_encode_value(key, changed[key]))
            else:
                file.seek(start)
                fields.append(file.read(end - start))
    fields += [_encode_value(key, value) for key, value in changed.items() if key not in header.raw_fields]
    return fields


def _encode_value(key: str, value: Value) -> bytes:
    if isinstance(value, ArrayRef):
        raise AssertionError(f"{key} is still in its file")
    return encode_field(key, value)


class GgufWriter:
    """Tensors get their types as they come: `begin`, `write`…, `finish`; the table is completed at the end.

    Leaves the file without a valid table when the body raises: write under a `.partial` name.
    """

    def __init__(
        self, path: Path, fields: Sequence[bytes], tensors: Sequence[tuple[str, tuple[int, ...]]], alignment: int
    ) -> None:
        """`tensors`: (name, dimensions in GGML order), in the order in which they will be written."""
        self._fields, self._planned, self._alignment = fields, tensors, alignment
        self._placed: list[tuple[int, int]] = []
        self._file: BinaryIO = path.open("wb")
        self._file.write(self._header())
        self._data_offset = self._start = self._file.tell()
        self._expected = 0

    def _header(self) -> bytes:
        """Types and offsets of tensors that aren't written yet are zero; the length never changes."""
        head = bytearray(b"GGUF" + struct.pack("<IQQ", _VERSION, len(self._planned), len(self._fields)))
        head += b"".join(self._fields)
        for i, (name, dimensions) in enumerate(self._planned):
            type_id, offset = self._placed[i] if i < len(self._placed) else (0, 0)
            rank = len(dimensions)
            head += _text(name) + struct.pack(f"<I{rank}QIQ", rank, *dimensions, type_id, offset)
        return bytes(head) + bytes(-len(head) % self._alignment)

    def begin(self, name: str, type_id: int) -> None:
        """Starts the next tensor, or the unfinished one again in another type."""
        planned, dimensions = self._planned[len(self._placed)]
        if planned != name:
            raise AssertionError(f"{name} written in the place of {planned}")
        self._file.seek(self._start)
        self._file.truncate()
        self._type = type_id
        elements = 1
        for dimension in dimensions:
            elements *= dimension
        kind = GGML_TYPES[type_id]
        self._expected = elements // kind.block_size * kind.block_bytes

    def write(self, data: bytes | memoryview) -> None:
        self._file.write(data)

    def finish(self) -> None:
        """Ends the tensor and pads to the alignment."""
        written = self._file.tell() - self._start
        if written != self._expected:
            raise AssertionError(f"{self._planned[len(self._placed)][0]}: {written} bytes, expected {self._expected}")
        self._placed.append((self._type, self._start - self._data_offset))
        self._file.write(bytes(-written % self._alignment))
        self._start = self._file.tell()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._file:
            if kind is not None:
                return
            if len(self._placed) != len(self._planned):
                raise AssertionError("the GGUF ended before its plan")
            self._file.seek(0)
            self._file.write(self._header())
            self._file.flush()
            os.fsync(self._file.fileno())
