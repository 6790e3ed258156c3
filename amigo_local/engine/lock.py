"""One writer per home: a lock that dies with its holder and says who holds it."""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec

from amigo_local.domain.errors import InputError


class Holder(msgspec.Struct, frozen=True):
    pid: int
    command: str
    since: float


@contextlib.contextmanager
def hold_home(root: Path, command: str) -> Iterator[None]:
    """Holds `root/lock` until the block ends. Raises InputError naming the holder when it is taken.

    The kernel drops the lock when the process dies, however it dies, so there is no stale lock.
    """
    path = root / "lock"
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        raise InputError(
            f"the home folder {root} can't be locked: {error.strerror or error}",
            "choose another with --home DIR or AMIGO_HOME=DIR",
        ) from error
    try:
        if not _try_lock(descriptor):
            raise InputError(
                f"the home folder {root} is in use by {_holder(path)}",
                "wait for it, stop it, or use another home with --home DIR",
            )
        # Byte 0 is what Windows locks; the text that others read starts behind it.
        os.ftruncate(descriptor, 0)
        os.lseek(descriptor, 0, os.SEEK_SET)
        os.write(descriptor, b" " + msgspec.json.encode(Holder(os.getpid(), command, time.time())))
        yield
    finally:
        os.close(descriptor)


def _try_lock(descriptor: int) -> bool:
    if sys.platform == "win32":
        import msvcrt

        try:
            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
        except OSError:
            return False
        return True
    import fcntl

    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def _holder(path: Path) -> str:
    try:
        with path.open("rb") as file:
            file.seek(1)
            holder = msgspec.json.decode(file.read(), type=Holder)
    except (OSError, msgspec.MsgspecError):
        return "another amigo-local"
    since = time.strftime("%H:%M:%S", time.localtime(holder.since))
    return f"`{holder.command}` (pid {holder.pid}, since {since})"
