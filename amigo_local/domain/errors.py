"""Errors that a person can act on: what happened, and a hint that is a command to run."""

from __future__ import annotations

EXIT_DONE = 0
EXIT_FAILED = 1
EXIT_USAGE = 2
EXIT_CANCELLED = 130  # 128 + SIGINT, as shells report it


class AmigoError(Exception):
    """The work failed (exit 1).

    `message` says what happened, where, what was found and what was expected; `hint` is what to
    run or change, and may be empty.
    """

    exit_code = EXIT_FAILED

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class InputError(AmigoError):
    """What was asked for can't be done as asked: usage, input or environment (exit 2)."""

    exit_code = EXIT_USAGE


class Cancelled(AmigoError):
    """The person stopped the work (exit 130)."""

    exit_code = EXIT_CANCELLED

    def __init__(self, message: str = "cancelled", hint: str = "") -> None:
        super().__init__(message, hint)
