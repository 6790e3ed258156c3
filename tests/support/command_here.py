"""`amigo-local` in this process, its workers too: what it reads, does, prints and ends with is the same, without the
seconds that a fresh process takes to import torch and transformers. What is about processes starts real ones."""

from __future__ import annotations

import contextlib
import io
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TextIO

import msgspec
import pytest

from amigo_local import worker
from amigo_local.cli.main import main
from amigo_local.domain.events import Record, decode_record
from amigo_local.engine.control import Command
from amigo_local.engine.execute import Job
from amigo_local.engine.steering import Steering
from tests.support.command_line import environment
from tests.support.threads import threads_put_back


def amigo_here(
    home: Path, *arguments: str, ollama: str | None = None, stdin: str = ""
) -> subprocess.CompletedProcess[str]:
    """One command to its end, as `amigo` runs it; an exception that a person would see as a traceback is raised."""
    given, out, err = _stream(stdin), _stream(), _stream()
    wanted = environment(home, ollama)
    with pytest.MonkeyPatch.context() as patch, threads_put_back():
        for name in os.environ.keys() - wanted.keys():
            patch.delenv(name)
        for name, value in wanted.items():
            patch.setenv(name, value)
        patch.setattr(sys, "argv", ["amigo-local", *arguments])
        patch.setattr("amigo_local.engine.runner.WorkerProcess", _worker_that_prints_to(sys.stderr))
        for name, stream in (("stdin", given), ("stdout", out), ("stderr", err)):
            patch.setattr(sys, name, stream)
        try:
            main(arguments)
        except SystemExit as end:
            code = end.code
    assert isinstance(code, int)
    done = subprocess.CompletedProcess([*arguments], code, _text(out), _text(err))
    assert "Traceback" not in done.stderr + done.stdout, done.stderr
    return done


def amigo_records_here(home: Path, *arguments: str, ollama: str | None = None) -> tuple[int, list[Record]]:
    """Exit code and records of a command with --json; every line of stdout must be one."""
    done = amigo_here(home, *arguments, "--json", ollama=ollama)
    return done.returncode, [decode_record(line) for line in done.stdout.splitlines()]


def _stream(text: str = "") -> io.TextIOWrapper:
    return io.TextIOWrapper(io.BytesIO(text.encode()), encoding="utf-8", write_through=True)


def _text(stream: io.TextIOWrapper) -> str:
    stream.seek(0)
    return stream.read()


def _worker_that_prints_to(log: TextIO) -> type:
    """A WorkerProcess whose worker is the caller: the job and each record go through JSON all the same."""

    class WorkerHere:
        def __init__(self, job: Job, log_path: Path, command: Sequence[str]) -> None:
            self._job = msgspec.json.encode(job)

        def records(self) -> Iterator[Record]:
            lines: list[bytes] = []
            # Not the command's streams: what a library prints, or keeps to print to, isn't the command's.
            with contextlib.redirect_stdout(log), contextlib.redirect_stderr(log):
                worker.run_job(msgspec.json.decode(self._job, type=Job), Steering(), lines.append)
            yield from map(decode_record, lines)

        def tell(self, command: Command) -> None:
            """It is at its end before it could hear."""

        def kill(self) -> None:
            """It has ended."""

    return WorkerHere
