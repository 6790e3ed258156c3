"""Spool: records on disk between two steps of `prepare`, with a small fixed-size entry about each in a file beside."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from amigo_local.domain.errors import AmigoError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

Fields = tuple[tuple[str, str], ...]
"""Names and numpy types of an entry's fields; `length`, a record's bytes, is one of them."""


class Spool:
    """Appended to and cut, so that it can be gone on with where a cut run was last safe."""

    def __init__(self, path: Path, fields: Fields) -> None:
        import numpy as np

        self._dtype = np.dtype(list(fields))
        self._path = path
        self._records = path.open("ab+")
        self._table = path.with_name(path.name + ".entries").open("ab+")
        self.rows = self._table.seek(0, os.SEEK_END) // self._dtype.itemsize

    def new_entries(self, rows: int) -> NDArray[Any]:
        import numpy as np

        return np.zeros(rows, self._dtype)

    def append(self, records: bytes, entries: NDArray[Any]) -> None:
        """`entries` (rows,), of records that lie one after the other in `records`. Raises AmigoError on a full disk."""
        try:
            self._records.write(records)
            self._table.write(entries.tobytes())
        except OSError as error:
            raise _unwritable(self._path, error) from error
        self.rows += len(entries)

    def sync(self) -> None:
        """Everything appended is on the disk when it returns."""
        try:
            for file in (self._records, self._table):
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise _unwritable(self._path, error) from error

    def cut(self, rows: int) -> None:
        """Forgets everything after so many rows, also half of a record."""
        self._table.truncate(rows * self._dtype.itemsize)
        self.rows = rows
        self._records.truncate(int(self.entries()["length"].sum(dtype="int64")))

    def entries(self) -> NDArray[Any]:
        """(rows,) in the order in which they were appended."""
        import numpy as np

        self._table.flush()
        return np.fromfile(self._table.name, self._dtype, self.rows)

    def reader(self, entries: NDArray[Any]) -> SpoolReader:
        """Of all records; `entries` are what `entries()` gave."""
        self._records.flush()
        return SpoolReader(self._records.fileno(), entries["length"])

    def close(self) -> None:
        self._records.close()
        self._table.close()


class SpoolReader:
    """Records by their number, in any order. 8 bytes a row."""

    def __init__(self, descriptor: int, lengths: NDArray[np.uint32]) -> None:
        import numpy as np

        self._descriptor, self._lengths = descriptor, lengths
        self._ends = np.cumsum(lengths, dtype=np.int64)

    def read(self, numbers: Sequence[int] | NDArray[np.intp]) -> list[bytes]:
        lengths, ends = self._lengths[numbers].tolist(), self._ends[numbers].tolist()
        pread, descriptor = os.pread, self._descriptor
        return [pread(descriptor, length, end - length) for length, end in zip(lengths, ends, strict=True)]


def sync_file(path: Path) -> None:
    """What others wrote to it is on the disk when it returns."""
    with path.open("rb+") as file:
        os.fsync(file.fileno())


def write_whole(path: Path, pieces: Iterable[bytes]) -> None:
    """Written beside, on the disk, then renamed: whatever happens, `path` is either the old file or the new one."""
    partial = path.with_name(path.name + ".partial")
    try:
        with partial.open("wb") as file:
            file.writelines(pieces)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except OSError as error:
        raise _unwritable(path, error) from error


def _unwritable(path: Path, error: OSError) -> AmigoError:
    return AmigoError(f"{path} can't be written: {error.strerror or error}", "free some disk space, and run again")
