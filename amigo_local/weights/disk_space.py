"""What happens when the disk fills up while something large is written."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from amigo_local.domain.errors import AmigoError
from amigo_local.domain.units import format_size

# Full disk, quota, and a file larger than the file system (FAT32: 4 GiB) or the limit of the shell takes.
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@contextmanager
def disk_full_is_an_error(directory: Path, needed_bytes: int) -> Iterator[None]:
    """Turns a full disk into an AmigoError that says what is needed and what is free; others pass through."""
    try:
        yield
    except OSError as error:
        if error.errno not in _FULL:
            raise
        free = shutil.disk_usage(directory).free
        reason = "a file of that size isn't allowed there" if error.errno == errno.EFBIG else "the disk is full"
        raise AmigoError(
            f"{directory}: {reason}: {format_size(needed_bytes)} ({needed_bytes} bytes) are needed, "
            f"{format_size(free)} are free now; what was written has been removed",
            "free some space, or write to another disk with --out",
        ) from error


@contextmanager
def partial_file(out_file: Path, needed_bytes: int) -> Iterator[Path]:
    """Yields OUT.partial to write to; it is synced and renamed when the body ends, removed when it raises."""
    partial = out_file.with_name(f"{out_file.name}.partial")
    try:
        with disk_full_is_an_error(out_file.parent, needed_bytes):
            try:
                yield partial
                with partial.open("rb+") as file:
                    os.fsync(file.fileno())
            except BaseException:
                partial.unlink(missing_ok=True)
                raise
        partial.replace(out_file)
    finally:
        partial.unlink(missing_ok=True)
