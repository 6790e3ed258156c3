"""Locks that die with their holder: one writer per home, one owner per run, and who they are."""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec

from amigo_local.domain.errors import InputError

ALIVE_NAME = "alive"
_PROBE_SECONDS = 1.0
"""Whoever asks whether a run is alive holds its lock for microseconds; its owner tries so long."""


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
                "wait for it (amigo-local runs watch), stop it, or use another home with --home DIR",
            )
        _sign(descriptor, command)
        yield
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def hold_run(folder: Path, command: str) -> Iterator[None]:
    """Holds `folder/alive` while the run goes on. Raises InputError when another process runs that run."""
    path = folder / ALIVE_NAME
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        deadline = time.monotonic() + _PROBE_SECONDS
        while not _try_lock(descriptor):
            if time.monotonic() > deadline:
                raise InputError(
                    f"run {folder.name} is going on already: {_holder(path)}", f"amigo-local runs watch {folder.name}"
                )
            time.sleep(0.01)
        _sign(descriptor, command)
        yield
    finally:
        os.close(descriptor)


def is_alive(folder: Path) -> bool:
    """Whether a process holds that run."""
    try:
        descriptor = os.open(folder / ALIVE_NAME, os.O_RDONLY)
    except OSError:
        return False
    try:
        return _is_locked(descriptor)
    finally:
        os.close(descriptor)


def _sign(descriptor: int, command: str) -> None:
    """Byte 0 is what Windows locks; the text that others read starts behind it."""
    os.ftruncate(descriptor, 0)
    os.lseek(descriptor, 0, os.SEEK_SET)
    os.write(descriptor, b" " + msgspec.json.encode(Holder(os.getpid(), command, time.time())))


def _try_lock(descriptor: int) -> bool:
    if sys.platform == "win32":
        import msvcrt

        try:
            os.lseek(descriptor, 0, os.SEEK_SET)
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


def _is_locked(descriptor: int) -> bool:
    """Without taking it from anyone: a shared lock, where there is such a thing; on Windows, where locks are
    mandatory, reading what is locked fails."""
    if sys.platform == "win32":
        try:
            os.read(descriptor, 1)
        except OSError:
            return True
        return False
    import fcntl

    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        return True
    return False


def _holder(path: Path) -> str:
    try:
        with path.open("rb") as file:
            file.seek(1)
            holder = msgspec.json.decode(file.read(), type=Holder)
    except (OSError, msgspec.MsgspecError, UnicodeDecodeError):
        return "another amigo-local"
    since = time.strftime("%H:%M:%S", time.localtime(holder.since))
    return f"`{holder.command}` (pid {holder.pid}, since {since})"
