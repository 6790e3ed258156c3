"""A place in a GGUF file from which values are read, each checked against the file's size first."""

from __future__ import annotations

import math
import mmap
import struct
from pathlib import Path
from typing import Any

import msgspec

from amigo_local.domain.errors import InputError
from amigo_local.weights.ggml_types import GGML_TYPES, GgmlType

Scalar = bool | int | float | str

# enum gguf_type in gguf.h -> struct format.
_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9
_EAGER_ARRAY_ITEMS = 64  # longer arrays (vocabularies, merges) stay in the file until asked for
MAX_KEY_BYTES = 65535  # "at most 2^16-1 bytes long", the GGUF specification
_MAX_STRING_BYTES = 64 << 20  # far above any licence or chat template
_MAX_DIMENSIONS = 4  # GGML_MAX_DIMS
HINT = "download or export the file again"


class ArrayRef(msgspec.Struct, frozen=True):
    """A long array left in the file: `offset` is where its first item lies, in bytes."""

    item_type: int
    count: int
    offset: int


Value = Scalar | tuple[Scalar, ...] | ArrayRef


class TensorInfo(msgspec.Struct, frozen=True):
    """One row of the tensor table."""

    name: str
    dimensions: tuple[int, ...]
    """GGML order: dimensions[0] is the length of a row."""
    type_id: int
    offset: int
    """Bytes from the start of the file."""

    @property
    def type(self) -> GgmlType:
        return GGML_TYPES[self.type_id]

    @property
    def type_name(self) -> str:
        return self.type.name

    @property
    def shape(self) -> tuple[int, ...]:
        """Row-major order, as torch and numpy write it."""
        return self.dimensions[::-1]

    @property
    def elements(self) -> int:
        return math.prod(self.dimensions)

    @property
    def nbytes(self) -> int:
        return self.elements // self.type.block_size * self.type.block_bytes


class Cursor:
    """Reading moves it on. Raises InputError instead of passing the end of the file."""

    def __init__(self, data: mmap.mmap, path: Path, position: int) -> None:
        self.data, self.path, self.position = data, path, position
        self.size = len(data)

    def fail(self, what: str) -> InputError:
        return InputError(f"{self.path}: damaged GGUF: {what} at byte {self.position}", HINT)

    def need(self, count: int, what: str) -> None:
        if count > self.size - self.position:
            raise InputError(
                f"{self.path}: truncated GGUF: {what} needs {count} bytes at byte {self.position}, "
                f"the file has {self.size}",
                HINT,
            )

    def unpack(self, layout: str, what: str) -> tuple[Any, ...]:
        size = struct.calcsize("<" + layout)
        self.need(size, what)
        values = struct.unpack_from("<" + layout, self.data, self.position)
        self.position += size
        return values

    def text(self, what: str, limit: int = _MAX_STRING_BYTES) -> str:
        (length,) = self.unpack("Q", what)
        if length > limit:
            raise self.fail(f"{what} is {length} bytes long, at most {limit} make sense")
        self.need(length, what)
        raw = self.data[self.position : self.position + length]
        self.position += length
        return raw.decode("utf-8", "replace")

    def scalar(self, kind: int, what: str) -> Scalar:
        if kind == _STRING:
            return self.text(what)
        value: Scalar = self.unpack(_SCALARS[kind], what)[0]
        return value

    def items(self, kind: int, count: int) -> tuple[Scalar, ...]:
        if kind == _STRING:
            return tuple(self.text("a string") for _ in range(count))
        return self.unpack(f"{count}{_SCALARS[kind]}", "an array")

    def skip(self, kind: int, count: int, what: str) -> None:
        """Moves past an array without building it."""
        if kind != _STRING:
            size = count * struct.calcsize("<" + _SCALARS[kind])
            self.need(size, what)
            self.position += size
            return
        self.need(8 * count, what)  # every string has at least its length
        read_length, data, position, size = struct.Struct("<Q").unpack_from, self.data, self.position, self.size
        for _ in range(count):
            if position > size - 8:
                break
            position += 8 + read_length(data, position)[0]
        self.position = position
        if position > size:
            raise InputError(f"{self.path}: truncated GGUF: {what} runs past the end of the file", HINT)

    def value(self, key: str) -> Value:
        (kind,) = self.unpack("I", f"the type of {key}")
        if kind != _ARRAY:
            if kind != _STRING and kind not in _SCALARS:
                raise self.fail(f"{key} has the unknown value type {kind}")
            return self.scalar(kind, key)
        kind, count = self.unpack("IQ", f"the array {key}")
        if kind != _STRING and kind not in _SCALARS:
            raise self.fail(f"the array {key} has the unknown item type {kind}")
        start = self.position
        self.skip(kind, count, key)
        if count > _EAGER_ARRAY_ITEMS:
            return ArrayRef(kind, count, start)
        end, self.position = self.position, start
        items = self.items(kind, count)
        self.position = end
        return items

    def tensor(self) -> TensorInfo:
        """One entry; its offset is still relative to the data section."""
        name = self.text("a tensor's name", MAX_KEY_BYTES)
        (rank,) = self.unpack("I", name)
        if not 1 <= rank <= _MAX_DIMENSIONS:
            raise self.fail(f"tensor {name} has {rank} dimensions, expected 1 to {_MAX_DIMENSIONS}")
        dimensions = self.unpack(f"{rank}Q", name)
        type_id, offset = self.unpack("IQ", name)
        kind = GGML_TYPES.get(type_id)
        if kind is None:
            raise InputError(
                f"{self.path}: tensor {name} has the unknown type {type_id}",
                f"known are {', '.join(sorted(kind.name for kind in GGML_TYPES.values()))}; take another quantization",
            )
        if min(dimensions) < 1 or dimensions[0] % kind.block_size:
            raise self.fail(f"tensor {name} of type {kind.name} has the impossible shape {list(dimensions)}")
        return TensorInfo(name, dimensions, type_id, offset)
