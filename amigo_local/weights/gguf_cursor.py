"""A place in a GGUF file from which values are read, each checked against the file's size first."""

from __future__ import annotations

import io
import math
import os
import stat
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import msgspec

from amigo_local.domain.errors import InputError
from amigo_local.weights.ggml_types import GGML_TYPES, REMOVED_TYPES, GgmlType
from amigo_local.weights.gguf_array import ARRAY, FORMATS, ITEM_BYTES, STRING, ArrayRef, Items, Scalar

# What a real header stays far below: so that no file makes reading it take a second or ten times its bytes.
MAX_FIELDS = 1024  # llama.cpp's converter writes 30 to 50
MAX_TENSORS = 32768  # Arctic with its 128 experts apart, which llama.cpp no longer writes, has 13,000
MAX_HEADER_BYTES = 128 << 20  # Gemma 3 takes 6 MB; with tokenizer.huggingface.json inside it would take 40
MAX_STRINGS = 1 << 21  # in arrays: Gemma 4 has 262,144 tokens and 514,906 merges
MAX_KEY_BYTES = 65535  # "at most 2^16-1 bytes long", ggml/docs/gguf.md
MAX_NAME_BYTES = 63  # GGML_MAX_NAME and its NUL
MAX_DIMENSIONS = 4  # GGML_MAX_DIMS
_EAGER_ITEMS = 64  # longer arrays (vocabularies, merges) stay in the file until asked for
_WINDOW_BYTES = 64 << 10
_SHOWN_CHARACTERS = 80
HINT = "download or export the file again"

Value = Scalar | tuple[Scalar, ...] | Items | ArrayRef


def shown(text: str) -> str:
    """What a file says, for a message: not too long, and nothing that a terminal would obey."""
    short = text[:_SHOWN_CHARACTERS]
    return (short if short.isprintable() else ascii(short)[1:-1]) + "…" * (len(text) > len(short))


def described(value: object) -> str:
    """A metadata value, for a message."""
    if isinstance(value, str):
        return shown(repr(value[:_SHOWN_CHARACTERS]))
    return shown(repr(value)) if isinstance(value, int | float | None) else "a list"


class TensorInfo(msgspec.Struct, frozen=True, gc=False):
    """One row of the tensor table."""

    name: str
    dimensions: tuple[int, ...]
    """GGML order: dimensions[0] is the length of a row."""
    type_id: int
    offset: int
    """Bytes from the start of its file."""
    file: int = 0
    """Index into GgufHeader.files."""

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


class Source:
    """A file's bytes, read by copying: a mapped page of a file that became shorter would kill the process (SIGBUS)."""

    def __init__(self, path: Path, file: BinaryIO, size: int) -> None:
        self.path, self._file, self.size = path, file, size

    @classmethod
    def of_bytes(cls, data: bytes, path: Path) -> Source:
        return cls(path, io.BytesIO(data), len(data))

    def read(self, offset: int, count: int) -> bytes:
        self._file.seek(offset)
        data = self._file.read(count)
        if len(data) != count:
            raise InputError(f"{self.path}: became shorter while it was read", "don't change the file meanwhile")
        return data


def _open_at_once(path: str, flags: int) -> int:
    """Opening a pipe otherwise waits for its writer; Windows has neither the flag nor such pipes."""
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))


@contextmanager
def open_source(path: Path) -> Iterator[Source]:
    """Raises InputError for what can't be read, also for a pipe or a device, on which reading might wait for ever."""
    try:
        with open(path, "rb", opener=_open_at_once) as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise InputError(f"{path}: can't be read: it is a pipe or a device", "give a file")
            yield Source(path, file, status.st_size)
    except OSError as error:
        raise InputError(
            f"{path}: can't be read: {error.strerror or error}", "check the path and its permissions"
        ) from error


class Cursor:
    """Reading moves it on. Raises InputError instead of passing the end of the file or of what a header may take."""

    def __init__(self, source: Source) -> None:
        self.source, self.path, self.size = source, source.path, source.size
        self.position = 0
        self._window, self._window_start = b"", 0
        self._strings_left = MAX_STRINGS

    def fail(self, what: str) -> InputError:
        return InputError(f"{self.path}: damaged GGUF: before byte {self.position}, {what}", HINT)

    def need(self, count: int, what: str) -> None:
        if count > self.size - self.position:
            raise InputError(
                f"{self.path}: truncated GGUF: {what} needs {count} bytes at byte {self.position}, "
                f"the file has {self.size}",
                HINT,
            )
        if count > MAX_HEADER_BYTES - self.position:
            raise self.fail(f"{what} needs {count} bytes, a header of more than {MAX_HEADER_BYTES} makes no sense")

    def ahead(self, count: int, what: str) -> int:
        """The index in the window of the next `count` bytes."""
        index = self.position - self._window_start
        if index + count > len(self._window):
            self.need(count, what)
            size = min(max(count, _WINDOW_BYTES), self.size - self.position)
            self._window = b""  # before there are two
            self._window, self._window_start, index = self.source.read(self.position, size), self.position, 0
        return index

    def unpack(self, layout: str, what: str) -> tuple[Any, ...]:
        size = struct.calcsize("<" + layout)
        index = self.ahead(size, what)
        self.position += size
        return struct.unpack_from("<" + layout, self._window, index)

    def text(self, what: str) -> str:
        """Bytes that are not UTF-8 are replaced: a torn licence makes no model useless."""
        length = self._length(what, MAX_HEADER_BYTES)
        index = self.ahead(length, what)
        self.position += length
        return str(memoryview(self._window)[index : index + length], "utf-8", "replace")

    def identifier(self, what: str, limit: int) -> str:
        """A key or a tensor's name: printable ASCII as the specification wants keys, so that no two look the same."""
        length = self._length(what, limit)
        index = self.ahead(length, what)
        self.position += length
        raw = self._window[index : index + length]
        if not raw or not raw.isascii() or not (text := raw.decode("ascii")).isprintable():
            raise self.fail(f"{what} is {raw[:_SHOWN_CHARACTERS]!r}, expected printable ASCII")
        return text

    def _length(self, what: str, limit: int) -> int:
        (length,) = self.unpack("Q", what)
        if length > limit:
            raise self.fail(f"{what} is {length} bytes long, at most {limit} make sense")
        return int(length)

    def items(self, kind: int, count: int, what: str) -> tuple[Scalar, ...]:
        if kind == STRING:
            return tuple([self.text(what) for _ in range(count)])
        return self.unpack(f"{count}{FORMATS[kind]}", what)

    def skip(self, kind: int, count: int, what: str) -> None:
        """Moves past an array without building it."""
        if kind != STRING:
            self.need(count * ITEM_BYTES[kind], what)
            self.position += count * ITEM_BYTES[kind]
            return
        self.need(8 * count, what)  # every string has at least its length
        self._strings_left -= count
        if self._strings_left < 0:
            raise self.fail(f"{what} has {count} texts, more than {MAX_STRINGS} in a header make no sense")
        read_length = struct.Struct("<Q").unpack_from
        done = 0
        while count := count - done:
            index = self.ahead(8, what)
            window, last = self._window, len(self._window) - 8
            for done in range(1, count + 1):  # noqa: B007 - how far it came is wanted
                index += 8 + read_length(window, index)[0]
                if index > last:
                    break
            self.position = self._window_start + index
            if self.position > self.size:
                raise InputError(f"{self.path}: truncated GGUF: {what} runs past the end of the file", HINT)

    def value(self, key: str) -> Value:
        name = shown(key)
        (kind,) = self.unpack("I", f"the type of {name}")
        if kind == STRING:
            return self.text(name)
        if kind in FORMATS:
            value: Scalar = self.unpack(FORMATS[kind], name)[0]
            return value
        if kind != ARRAY:
            raise self.fail(f"{name} has the unknown value type {kind}")
        kind, count = self.unpack("IQ", f"the array {name}")
        if kind == ARRAY:
            raise self.fail(f"{name} is an array of arrays, which llama.cpp has no use for")
        if kind != STRING and kind not in FORMATS:
            raise self.fail(f"the array {name} has the unknown item type {kind}")
        # Small integers would take 36 times their one or two bytes as objects.
        if count <= _EAGER_ITEMS and FORMATS.get(kind) not in ("B", "b", "H", "h"):
            return self.items(kind, count, f"the array {name}")
        start = self.position
        self.skip(kind, count, f"the array {name}")
        return ArrayRef(kind, count, start, self.position - start)

    def tensor(self) -> TensorInfo:
        """One entry; its offset is still relative to the data section."""
        name = self.identifier("a tensor's name", MAX_NAME_BYTES)
        what = f"tensor {name}"
        (rank,) = self.unpack("I", what)
        if not 1 <= rank <= MAX_DIMENSIONS:
            raise self.fail(f"{what} has {rank} dimensions, expected 1 to {MAX_DIMENSIONS}")
        *dimensions, type_id, offset = self.unpack(f"{rank}QIQ", what)
        kind = GGML_TYPES.get(type_id)
        if kind is None:
            raise InputError(f"{self.path}: {what} has {_unknown_type(type_id)}", "take another quantization")
        if 0 in dimensions:
            raise self.fail(f"{what} has the shape {dimensions}, in which no dimension may be 0")
        if math.prod(dimensions) >= 1 << 63:
            raise self.fail(f"{what} has the shape {dimensions}, of more elements than the 2^63 of ggml")
        if dimensions[0] % kind.block_size:
            raise self.fail(f"{what} has rows of {dimensions[0]}, no multiple of {kind.name}'s {kind.block_size}")
        return TensorInfo(name, tuple(dimensions), type_id, offset)


def _unknown_type(type_id: int) -> str:
    if type_id in REMOVED_TYPES:
        return f"the type {REMOVED_TYPES[type_id]}, which llama.cpp no longer reads"
    return f"the unknown type {type_id}; known are {', '.join(sorted(kind.name for kind in GGML_TYPES.values()))}"
