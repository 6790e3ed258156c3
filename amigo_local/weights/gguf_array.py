"""What a GGUF holds many of, kept about as small as the file keeps it."""

from __future__ import annotations

import struct
import sys
from array import array
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Self, overload

import msgspec

from amigo_local.domain.errors import InputError

Scalar = bool | int | float | str

# enum gguf_type in gguf.h -> struct format, which is also the type code of an `array`, but for "?".
FORMATS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
BOOL, STRING, ARRAY = 7, 8, 9
ITEM_BYTES = {kind: struct.calcsize("<" + layout) for kind, layout in FORMATS.items()}
_LENGTH = struct.Struct("<Q")


class ArrayRef(msgspec.Struct, frozen=True, gc=False):
    """An array left in the file, where its items take `size` bytes from `offset` on."""

    item_type: int
    count: int
    offset: int
    size: int


class Items(Sequence[Scalar]):
    """The items of one array, decoded as they are taken: Python objects would take eight times the file's bytes.

    A slice is Items too; equal to any sequence of equal items. Taking a text that is not UTF-8 raises InputError:
    long lists of texts are vocabularies, in which a replaced byte is another token.
    """

    __hash__ = None  # type: ignore[assignment]  # like list: it compares by value

    def __init__(self, item_type: int, cells: array[Any], texts: bytes, name: str) -> None:
        """`cells` holds numbers, or where each text starts in `texts`; `name` is for messages."""
        self.item_type, self._cells, self._texts, self._name = item_type, cells, texts, name

    @classmethod
    def decode(cls, item_type: int, count: int, raw: bytes, name: str) -> Self:
        """`raw` as it is in the file. Raises InputError when it doesn't hold exactly `count` items."""
        if item_type == STRING:
            return cls(item_type, _starts(raw, count, name), raw, name)
        cells: array[Any] = array("B" if item_type == BOOL else FORMATS[item_type])
        cells.frombytes(raw)
        if sys.byteorder == "big":
            cells.byteswap()
        if len(cells) != count:
            raise _changed(name)
        return cls(item_type, cells, b"", name)

    def __iter__(self) -> Iterator[Scalar]:
        if self.item_type == STRING:
            return self._decoded()
        return map(bool, self._cells) if self.item_type == BOOL else iter(self._cells)

    def _decoded(self) -> Iterator[str]:
        texts, read_length = self._texts, _LENGTH.unpack_from
        for start in self._cells:
            raw = texts[start + 8 : start + 8 + read_length(texts, start)[0]]
            try:
                yield raw.decode()
            except UnicodeDecodeError as error:
                raise InputError(
                    f"{self._name} holds a text that is not UTF-8: {raw[:40]!r}", "take another file of this model"
                ) from error

    def __len__(self) -> int:
        return len(self._cells)

    @overload
    def __getitem__(self, index: int) -> Scalar: ...
    @overload
    def __getitem__(self, index: slice) -> Items: ...
    def __getitem__(self, index: int | slice) -> Scalar | Items:
        if isinstance(index, slice):
            return self._of(self._cells[index])
        return next(iter(self._of(array(self._cells.typecode, (self._cells[index],)))))

    def _of(self, cells: array[Any]) -> Items:
        return Items(self.item_type, cells, self._texts, self._name)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Sequence) or isinstance(other, str):
            return NotImplemented
        return len(self) == len(other) and all(a == b for a, b in zip(self, other, strict=True))

    def __repr__(self) -> str:
        return f"<{len(self)} items of {self._name}>"


def _starts(raw: bytes, count: int, name: str) -> array[int]:
    starts, position, last = array("I"), 0, len(raw) - _LENGTH.size
    for _ in range(count):
        if position > last:
            raise _changed(name)
        starts.append(position)
        position += _LENGTH.size + _LENGTH.unpack_from(raw, position)[0]
    if position != len(raw):
        raise _changed(name)
    return starts


def _changed(name: str) -> InputError:
    return InputError(f"{name} became another array while it was read", "don't change the file meanwhile")


class FieldPlaces(Mapping[str, tuple[int, int]]):
    """Key -> the [start, end) bytes of its whole entry. Sixteen bytes a field; a dict of tuples takes 200."""

    def __init__(self) -> None:
        self._keys: list[str] = []
        self._bounds = array("Q")

    def append(self, key: str, start: int, end: int) -> None:
        self._keys.append(key)
        self._bounds.extend((start, end))

    def __len__(self) -> int:
        return len(self._keys)

    def __iter__(self) -> Iterator[str]:
        return iter(self._keys)

    def __getitem__(self, key: str) -> tuple[int, int]:
        try:
            index = self._keys.index(key)
        except ValueError:
            raise KeyError(key) from None
        return self._bounds[2 * index], self._bounds[2 * index + 1]
