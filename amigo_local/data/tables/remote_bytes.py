"""Remote bytes: a file on a hub as one that can be read and sought in, for a look at its beginning or its footer."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import TYPE_CHECKING, BinaryIO, cast

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

_BLOCK_BYTES = 256 << 10  # a request's cost is its way there and back


class RemoteBytes(io.RawIOBase):
    """`part(start, stop)` brings bytes [start, stop); the block that was read last is kept."""

    def __init__(self, size_bytes: int, part: Callable[[int, int], bytes]) -> None:
        super().__init__()
        self._size, self._part = size_bytes, part
        self._at, self._start, self._block = 0, 0, b""

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size}[whence]
        self._at = max(0, base + offset)
        return self._at

    def tell(self) -> int:
        return self._at

    def readinto(self, buffer: WriteableBuffer) -> int:
        view = memoryview(buffer)
        wanted = min(len(view), self._size - self._at)
        if wanted <= 0:
            return 0
        offset = self._at - self._start
        if not 0 <= offset < len(self._block):
            stop = min(self._size, self._at + max(wanted, _BLOCK_BYTES))
            self._start, self._block, offset = self._at, self._part(self._at, stop), 0
        piece = self._block[offset : offset + wanted]
        view[: len(piece)] = piece
        self._at += len(piece)
        return len(piece)


def open_remote(size_bytes: int, part: Callable[[int, int], bytes]) -> BinaryIO:
    return cast(BinaryIO, io.BufferedReader(RemoteBytes(size_bytes, part), buffer_size=1 << 16))
