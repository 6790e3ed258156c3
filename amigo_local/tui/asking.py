"""Asks verbs of runner processes that are kept for it, so that nothing is computed in the process that draws."""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections import deque
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO, TypeVar

import msgspec

from amigo_local.domain.errors import EXIT_CANCELLED, EXIT_FAILED
from amigo_local.domain.events import AnyEvent, Note, Record, StageFailed, Table
from amigo_local.engine.runner_process import RUNNER_COMMAND, RunEnded, RunRequest, decode_answer

_READ_BYTES = 1 << 16
_SLICE_SECONDS = 0.008
"""Decoding in one go, before keys get their turn."""
_COALESCE_SECONDS = 0.04
"""Records of so long are handed over together: an eye sees no more."""
_KEPT = 3
"""Idle processes; each holds about 40 MB."""

E = TypeVar("E", bound=AnyEvent)


@dataclass
class Reply:
    """Everything that one verb said."""

    records: list[Record] = field(default_factory=list)
    exit_code: int = EXIT_FAILED
    run_id: str = ""
    error: StageFailed | None = None

    def all(self, kind: type[E]) -> list[E]:
        return [record.event for record in self.records if isinstance(record.event, kind)]

    def first(self, kind: type[E]) -> E | None:
        return next(iter(self.all(kind)), None)

    @property
    def tables(self) -> list[Table]:
        return self.all(Table)

    @property
    def notes(self) -> list[Note]:
        return self.all(Note)


class _Process:
    """One runner process."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process
        self.buffer = b""
        self.lines: deque[bytes] = deque()

    @classmethod
    async def start(cls, command: Sequence[str], log: Path) -> _Process:
        with _open_log(log) as stderr:
            process = await asyncio.create_subprocess_exec(
                *command,
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=stderr,
                start_new_session=os.name == "posix",
            )
        return cls(process)

    @property
    def alive(self) -> bool:
        return self._process.returncode is None

    @property
    def returncode(self) -> int | None:
        return self._process.returncode

    async def write(self, line: bytes) -> None:
        assert self._process.stdin is not None
        with contextlib.suppress(ConnectionError):
            self._process.stdin.write(line + b"\n")
            await self._process.stdin.drain()

    async def read(self) -> bool:
        """Takes in what is there; False when the process has closed its end."""
        assert self._process.stdout is not None
        chunk = await self._process.stdout.read(_READ_BYTES)
        *whole, self.buffer = (self.buffer + chunk).split(b"\n")
        self.lines.extend(whole)
        return bool(chunk)

    async def end(self) -> None:
        """Its stdin ends, and so does it, with its worker; killed when it doesn't."""
        if self._process.stdin:
            self._process.stdin.close()
        with contextlib.suppress(ProcessLookupError):
            try:
                await asyncio.wait_for(self._process.wait(), 2)
            except TimeoutError:
                self._process.kill()
                await self._process.wait()


def _open_log(log: Path) -> BinaryIO:
    """Nowhere, on a disk that is full or read-only: what is asked can be answered all the same."""
    try:
        log.parent.mkdir(parents=True, exist_ok=True)
        return log.open("ab")
    except OSError:
        return Path(os.devnull).open("ab")


class Asked:
    """One verb being run: iterate over lists of records, to the end. `reply` is what they add up to."""

    def __init__(self, pool: RunnerPool, request: RunRequest) -> None:
        self._pool, self._request = pool, request
        self._process: _Process | None = None
        self._cancelled = False
        self.reply = Reply()

    async def cancel(self) -> None:
        """Asks the work to stop; the records end soon after."""
        self._cancelled = True
        if self._process:
            await self._process.write(b"cancel")

    def __aiter__(self) -> AsyncIterator[list[Record]]:
        return self._batches()

    async def _batches(self) -> AsyncIterator[list[Record]]:
        try:
            process = self._process = await self._pool.take()
        except OSError as error:
            text = f"no process can be started to ask `{self._request.verb}`: {error.strerror or error}"
            self.reply.error = StageFailed(text, "close other programs, and try again", EXIT_FAILED)
            return
        ended: RunEnded | None = None
        try:
            await process.write(msgspec.json.encode(self._request))
            if self._cancelled:
                await process.write(b"cancel")
            open_, last = True, 0.0
            while ended is None and (open_ or process.lines):
                if not process.lines:
                    open_ = await process.read()
                # What comes thick and fast is gathered for a moment.
                if (wait := last + _COALESCE_SECONDS - time.monotonic()) > 0 and open_:
                    await asyncio.sleep(wait)
                    open_ = await process.read() if not process.lines else open_
                batch, ended = self._decode(process)
                last = time.monotonic()
                if batch:
                    yield batch
                await asyncio.sleep(0)
        finally:
            self._process = None
            if ended is None:
                self._settle_lost(process)
                self._pool.end(process)
            else:
                self.reply.exit_code, self.reply.run_id = ended.exit_code, ended.run_id
                self.reply.error = ended.error or self.reply.error
                self._pool.give_back(process)

    def _decode(self, process: _Process) -> tuple[list[Record], RunEnded | None]:
        batch: list[Record] = []
        until = time.monotonic() + _SLICE_SECONDS
        while process.lines and time.monotonic() < until:
            try:
                answer = decode_answer(process.lines.popleft())
            except (msgspec.MsgspecError, UnicodeDecodeError):
                continue  # the torn last line of a process that was killed
            if isinstance(answer, RunEnded):
                return batch, answer
            batch.append(answer)
            if isinstance(answer.event, StageFailed):
                self.reply.error = answer.event
        return batch, None

    def _settle_lost(self, process: _Process) -> None:
        """The process is gone, or nobody wants to hear the rest."""
        if self._cancelled:
            self.reply.exit_code = EXIT_CANCELLED
        elif self.reply.error is None:
            self.reply.error = StageFailed(
                f"the process of `{self._request.verb}` ended without a word (exit code {process.returncode})",
                f"try again; its log: {self._pool.log}",
                EXIT_FAILED,
            )


class RunnerPool:
    """Runner processes: as many as are asked at once, and a few kept for the next question."""

    def __init__(self, log: Path, command: Sequence[str] = RUNNER_COMMAND) -> None:
        self.log = log
        self._command = command
        self._idle: list[_Process] = []
        self._busy: set[_Process] = set()
        self._ending: set[asyncio.Future[None]] = set()
        self._closed = False

    async def take(self) -> _Process:
        process = None
        while self._idle and not process:
            process = kept if (kept := self._idle.pop()).alive else None
        process = process or await _Process.start(self._command, self.log)
        self._busy.add(process)
        return process

    def give_back(self, process: _Process) -> None:
        self._busy.discard(process)
        if process.alive and not self._closed and len(self._idle) < _KEPT:
            self._idle.append(process)
        else:
            self.end(process)

    def end(self, process: _Process) -> None:
        """Without waiting for it."""
        self._busy.discard(process)
        ending = asyncio.ensure_future(process.end())
        self._ending.add(ending)
        ending.add_done_callback(self._ending.discard)

    async def warm(self) -> None:
        """Starts one ahead of the first question."""
        if not self._idle and not self._closed:
            self._idle.append(await _Process.start(self._command, self.log))

    async def close(self) -> None:
        self._closed = True
        processes, self._idle = [*self._idle, *self._busy], []
        await asyncio.gather(*(process.end() for process in processes), *self._ending)
