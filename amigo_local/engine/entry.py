"""What the entry points of our processes share: whose stdout is whose, and words for a failure nobody foresaw."""

from __future__ import annotations

import errno
import os
import traceback
from collections.abc import Callable

from amigo_local.domain.errors import EXIT_FAILED, AmigoError
from amigo_local.domain.events import StageFailed

WriteLine = Callable[[bytes], None]


def own_stdout() -> WriteLine:
    """Keeps the real stdout for records and points descriptor 1 at stderr, for C code too."""
    descriptor = take_stdout()
    return lambda line: write_line(descriptor, line)


def take_stdout() -> int:
    """The same, as the descriptor that the real stdout has from now on."""
    descriptor = os.dup(1)
    os.dup2(2, 1)
    return descriptor


def write_line(descriptor: int, line: bytes) -> None:
    data = memoryview(line + b"\n")
    while data:
        data = data[os.write(descriptor, data) :]


def expected(error: AmigoError) -> StageFailed:
    """A failure that somebody foresaw, as an event; the traceback is for the journal."""
    return StageFailed(error.message, error.hint, error.exit_code, traceback.format_exc())


def unexpected(error: Exception) -> StageFailed:
    """A failure nobody foresaw, as an event."""
    if isinstance(error, OSError) and error.errno == errno.ENOSPC:
        return StageFailed(
            "the disk is full",
            "free some space; `amigo-local runs clean` shows what it could free",
            EXIT_FAILED,
            traceback.format_exc(),
        )
    if isinstance(error, MemoryError):
        return StageFailed(
            "out of memory", "close other programs, or choose a smaller model", EXIT_FAILED, traceback.format_exc()
        )
    message = f"{type(error).__name__}: {error}"
    return StageFailed(
        message,
        "a bug in amigo-local; the journal has the traceback: amigo-local runs show",
        EXIT_FAILED,
        traceback.format_exc(),
    )
