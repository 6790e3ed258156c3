"""A runner in a process of its own, as whoever asks it sees it: a request goes in, records or a run's id come out.

`python -m amigo_local.runner_process` reads requests line by line and runs one after the other; a line `cancel` stops
the current one, and the end of stdin ends the process. A detached request is the only one of its process, which then
answers with the run's id alone and lives on whatever becomes of its starter.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Sequence
from typing import IO, Any

import msgspec

from amigo_local.domain.errors import EXIT_USAGE, AmigoError, InputError
from amigo_local.domain.events import Record, StageFailed, decode_record
from amigo_local.domain.settings import ProgramSettings
from amigo_local.domain.strict import Strict

RUNNER_COMMAND = (sys.executable, "-m", "amigo_local.runner_process")
START_SECONDS = 60.0
"""A cold disk takes some ten for our imports; a home on a server that is gone would take for ever."""


class RunRequest(Strict, frozen=True, kw_only=True):
    """One verb to run, as one JSON line."""

    verb: str
    params: dict[str, Any]
    """What the verb's `asked` struct takes."""
    settings: ProgramSettings
    home: str
    title: str = ""
    """The command that a person would type, without the program's name."""
    resume: str | None = None
    """Id of an earlier run to go on in; params may be others than it had."""
    detached: bool = False


class RunEnded(Strict, frozen=True, kw_only=True):
    """The last line that answers a request which isn't detached."""

    exit_code: int
    run_id: str
    error: StageFailed | None = None
    """Set when it failed, or was refused before anything started."""


class RunBegun(Strict, frozen=True, kw_only=True):
    """The only line that answers a detached request."""

    run_id: str
    error: StageFailed | None = None
    """Why it was refused; there is no run then."""


def decode_answer(line: bytes) -> Record | RunEnded:
    """A line that answers a request. Raises msgspec.MsgspecError on anything else."""
    if line.startswith(b'{"exit_code"'):
        return msgspec.json.decode(line, type=RunEnded)
    return decode_record(line)


def start_detached(
    request: RunRequest, command: Sequence[str] = RUNNER_COMMAND, wait_seconds: float = START_SECONDS
) -> str:
    """Starts a run that outlives this process, and returns its id once it holds what it needs.

    Raises InputError when it is refused (the home is in use, the params are wrong, no such verb), AmigoError when no
    process can be started, or it ends without a word, or says none in `wait_seconds`.
    """
    request = msgspec.structs.replace(request, detached=True)
    with contextlib.ExitStack() as opened:
        try:
            log = opened.enter_context(tempfile.TemporaryFile())  # its stderr, until it has a run to keep it in
            process = _start(command, log)
        except OSError as error:
            text = f"no process can be started for the run: {error.strerror or error}"
            raise AmigoError(text, "close other programs or free some disk, and try again") from error
        assert process.stdin and process.stdout
        impatience = threading.Timer(wait_seconds, process.kill)
        impatience.start()
        with process.stdout:
            try:
                with process.stdin:
                    process.stdin.write(msgspec.json.encode(request) + b"\n")
            except BrokenPipeError:
                pass  # it says why, or its log does
            line = process.stdout.readline()
        impatience.cancel()
        if not line.endswith(b"\n"):
            raise _died(process.wait(), log)
    begun = msgspec.json.decode(line, type=RunBegun)
    if begun.error:
        process.wait()
        kind = InputError if begun.error.exit_code == EXIT_USAGE else AmigoError
        raise kind(begun.error.message, begun.error.hint)
    # It is meant to stay; should it end first, it leaves no zombie.
    threading.Thread(target=process.wait, daemon=True).start()
    return begun.run_id


def _start(command: Sequence[str], log: IO[bytes]) -> subprocess.Popen[bytes]:
    flags = 0
    if sys.platform == "win32":
        flags = subprocess.CREATE_NEW_PROCESS_GROUP | subprocess.CREATE_NO_WINDOW
    return subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=log,
        start_new_session=os.name == "posix",
        creationflags=flags,
    )


def _died(code: int, log: IO[bytes]) -> AmigoError:
    log.seek(0)
    said = log.read()[-4000:].decode(errors="replace").strip()
    how = f"signal {-code}" if code < 0 else f"exit code {code}"
    return AmigoError(f"the process of the run ended before it started ({how})", said or "amigo-local doctor")
