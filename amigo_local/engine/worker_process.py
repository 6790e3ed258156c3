"""A worker as its owner sees it: records come out, a cancel goes in, its death explains itself."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import msgspec

from amigo_local.domain.errors import EXIT_FAILED
from amigo_local.domain.events import AnyEvent, Record, StageCancelled, StageFailed, StageFinished, decode_record
from amigo_local.engine.control import Command
from amigo_local.engine.execute import Job

WORKER_COMMAND = (sys.executable, "-m", "amigo_local.worker")
CANCEL_GRACE_SECONDS = 20.0
"""From the request to SIGKILL: a training step on a slow CPU ends well within it."""


class WorkerProcess:
    """One running worker. Its stderr goes to `log_path`."""

    def __init__(self, job: Job, log_path: Path, command: Sequence[str] = WORKER_COMMAND) -> None:
        self.job = job
        self.log_path = log_path
        self.cancelled = False
        self._timer: threading.Timer | None = None
        log_path.parent.mkdir(parents=True, exist_ok=True)
        with log_path.open("ab") as log:
            # Its own session: Ctrl-C reaches the owner alone, who asks the worker to stop.
            self._process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, start_new_session=os.name == "posix"
            )
        with contextlib.suppress(BrokenPipeError):
            self._send(msgspec.json.encode(job))

    @property
    def pid(self) -> int:
        return self._process.pid

    def _send(self, line: bytes) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(line + b"\n")
        self._process.stdin.flush()

    def records(self) -> Iterator[Record]:
        """Every whole record until the worker ends. The last one always tells the outcome: when the
        worker died without a word, one is made that says how."""
        assert self._process.stdout is not None
        seq, ended = self.job.next_seq, False
        for line in self._process.stdout:
            try:
                record = decode_record(line)
            except (msgspec.MsgspecError, UnicodeDecodeError):
                continue  # the torn last line of a worker that was killed
            seq = record.seq + 1
            ended = isinstance(record.event, StageFinished | StageFailed | StageCancelled)
            yield record
        code = self._process.wait()
        if self._timer:
            self._timer.cancel()
        if self._process.stdin:
            with contextlib.suppress(OSError):
                self._process.stdin.close()
        if not ended:
            yield Record(self.job.run_id, seq, time.time(), self.job.stage, self._epitaph(code))

    def _epitaph(self, code: int) -> AnyEvent:
        if self.cancelled:
            return StageCancelled()
        tail = self._log_tail()
        if code == -signal.SIGKILL if os.name == "posix" else False:
            return StageFailed(
                f"the {self.job.stage} worker was killed (signal 9)",
                "often the kernel, out of memory: see `amigo-local plan`; run the same command again to go on",
                EXIT_FAILED,
                tail,
            )
        how = f"signal {-code}" if code < 0 else f"exit code {code}"
        return StageFailed(f"the {self.job.stage} worker died ({how})", f"its log: {self.log_path}", EXIT_FAILED, tail)

    def _log_tail(self) -> str:
        try:
            return self.log_path.read_bytes()[-4000:].decode(errors="replace")
        except OSError:
            return ""

    def tell(self, command: Command) -> None:
        if command == "cancel":
            self.cancel()
            return
        with contextlib.suppress(OSError, ValueError):  # it has just ended
            self._send(command.encode())

    def cancel(self) -> None:
        """Asks the worker to stop at its next event; kills it when it hasn't after the grace time,
        or at once when asked a second time."""
        if self.cancelled:
            self.kill()
            return
        self.cancelled = True
        with contextlib.suppress(OSError, ValueError):
            self._send(b"cancel")
        self._timer = threading.Timer(CANCEL_GRACE_SECONDS, self.kill)
        self._timer.daemon = True
        self._timer.start()

    def kill(self) -> None:
        """Ends it and everything it started, at once."""
        with contextlib.suppress(ProcessLookupError):
            if os.name == "posix":
                os.killpg(self._process.pid, signal.SIGKILL)
            else:
                self._process.kill()
