"""Control of a live run from any process: a word in `runs/ID/control`, read by the process that owns the run."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal, get_args

from amigo_local.domain.errors import InputError
from amigo_local.engine.lock import ALIVE_NAME, is_alive
from amigo_local.engine.workspace import write_synced

CONTROL_NAME = "control"
POLL_SECONDS = 0.2
Command = Literal["pause", "continue", "stop", "cancel"]
"""stop: after the next checkpoint; between stages, for a stage that keeps none."""
_RANKS: dict[str, int] = {"pause": 0, "continue": 0, "stop": 1, "cancel": 2}
_WORDS: tuple[Command, ...] = get_args(Command)


def send_command(run_folder: Path, command: Command) -> None:
    """Leaves the command for whoever runs that run; one that wasn't taken yet gives way, unless it ends more."""
    path = run_folder / CONTROL_NAME
    if _RANKS.get(_read(path), 0) > _RANKS[command]:
        return
    aside = path.with_name(f"{CONTROL_NAME}-{os.getpid()}.partial")
    write_synced(aside, command.encode())
    aside.replace(path)


def tell_run(run_folder: Path, command: Command, title: str = "") -> None:
    """The same for a run that must be going on. Raises InputError when it isn't, or the home can't be written. title:
    what it was asked, for the message."""
    run_id = run_folder.name
    if not is_alive(run_folder):
        asked = f" (`{title}`)" if title else ""
        raise InputError(f"run {run_id} isn't going on{asked}", "amigo-local runs ls shows those that are")
    try:
        send_command(run_folder, command)
    except OSError as error:
        raise InputError(
            f"run {run_id} can't be told to {command}: {error.strerror or error}",
            f"free some disk; or end it by its process, which {run_folder / ALIVE_NAME} names",
        ) from error


def take_command(run_folder: Path) -> Command | None:
    """Reads and removes what was left; None when nothing was, or nothing that is understood."""
    path = run_folder / CONTROL_NAME
    taken = path.with_name(f"{CONTROL_NAME}-taken.partial")
    try:
        path.replace(taken)  # first, so that a command that comes meanwhile isn't removed unread
    except OSError:
        return None  # none; or, on Windows, one that is being written: the next poll gets it
    word = _read(taken)
    taken.unlink(missing_ok=True)
    return parse_command(word)


def parse_command(word: str) -> Command | None:
    """The command of that name; None when there is none."""
    return next((known for known in _WORDS if known == word.strip()), None)


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return ""


@contextlib.contextmanager
def obeying(run_folder: Path, obey: Callable[[Command], object], every_seconds: float = POLL_SECONDS) -> Iterator[None]:
    """Hands every command that comes for the run to `obey`, from a thread of its own, until the block ends. One that
    was left for an earlier start of the run is dropped."""
    take_command(run_folder)
    ended = threading.Event()

    def poll() -> None:
        while not ended.wait(every_seconds):
            if command := take_command(run_folder):
                obey(command)

    thread = threading.Thread(target=poll, name="control", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
