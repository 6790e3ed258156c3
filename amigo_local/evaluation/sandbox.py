"""Runs generated code where it can do no harm, and believes only a verdict that its checks were reached."""

from __future__ import annotations

import contextlib
import json
import math
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any, Literal, Protocol

from amigo_local.domain.errors import AmigoError, InputError
from amigo_local.domain.units import MIB
from amigo_local.domain.verdict import Verdict
from amigo_local.evaluation.bubblewrap import Launch, bubblewrap_launches, why_no_sandbox
from amigo_local.evaluation.harness import NONCE_LENGTH

TIMEOUT_SECONDS = 5.0
MEMORY_BYTES = 1024 * MIB
PROCESSES = 16
FILE_BYTES = 16 * MIB
START_SECONDS = 2.0
"""Allowed on top of the timeout for the namespaces and the interpreter, which a loaded machine starts slowly."""

_VERDICT_BYTES = 4096
_DETAIL_CHARACTERS = 500


class Sandbox(Protocol):
    kind: Literal["bubblewrap", "none"]
    can_run: bool
    """False: `run` refuses; `statement` says why and `fix` what to do."""
    statement: str
    """For the report: how generated code was kept, or why none was run."""
    fix: str

    def run(self, program: str, timeout_seconds: float = TIMEOUT_SECONDS, memory_bytes: int = MEMORY_BYTES) -> Verdict:
        """Runs `program` to its end in a fresh interpreter with the standard library only."""


def open_sandbox(unsafe: bool = False, bubblewrap: str | None = None) -> Sandbox:
    """The best sandbox that works here, found by running something in it.

    `unsafe` lets generated code run unprotected where none works; `bubblewrap` is the program to
    use instead of the `bwrap` on the path. Never raises: where nothing works, the sandbox says so.
    """
    program = bubblewrap or shutil.which("bwrap")
    complaint = ""
    if sys.platform == "linux" and program:
        for launch in bubblewrap_launches(program):
            sandbox = _Running(launch, "bubblewrap", f"{launch.version}: no network, no files but Python's own", "")
            try:
                verdict = sandbox.run("import os, json\nassert os.getuid() != 0", timeout_seconds=10)
            except AmigoError as error:
                complaint = complaint or error.message
                continue
            if verdict.passed:
                return sandbox
            complaint = complaint or verdict.detail
    statement, fix = why_no_sandbox(program, complaint)
    if unsafe:
        return _Running(None, "none", f"{statement}; it was run without protection, as asked", fix)
    return _Refusing(f"{statement}, so no generated code was run", f"{fix}, or allow it unprotected with --unsafe")


class _Refusing:
    kind: Literal["bubblewrap", "none"] = "none"
    can_run = False

    def __init__(self, statement: str, fix: str) -> None:
        self.statement, self.fix = statement, fix

    def run(self, program: str, timeout_seconds: float = TIMEOUT_SECONDS, memory_bytes: int = MEMORY_BYTES) -> Verdict:
        raise InputError(self.statement, self.fix)


class _Running:
    can_run = True

    def __init__(self, launch: Launch | None, kind: Literal["bubblewrap", "none"], statement: str, fix: str) -> None:
        self.kind = kind
        self.statement, self.fix = statement, fix
        self._launch = launch
        self._harness = Path(__file__).with_name("harness.py").read_text(encoding="utf-8")

    def run(self, program: str, timeout_seconds: float = TIMEOUT_SECONDS, memory_bytes: int = MEMORY_BYTES) -> Verdict:
        nonce = secrets.token_hex(NONCE_LENGTH // 2).encode()
        job = {
            "program": program,
            "memory_bytes": memory_bytes,
            "cpu_seconds": math.ceil(timeout_seconds),
            "file_bytes": FILE_BYTES,
            # Outside a sandbox the limit would count everything else that the user runs.
            "processes": PROCESSES if self._launch else 0,
            "become_nobody": bool(self._launch and self._launch.become_nobody),
        }
        body = json.dumps(job).encode()
        output, code, timed_out = self._exchange(len(body).to_bytes(8, "big") + body + nonce, timeout_seconds)
        return _judge(output, code, timed_out, nonce, timeout_seconds)

    def _exchange(self, request: bytes, timeout_seconds: float) -> tuple[bytes, int, bool]:
        """What came back, the exit status (negative: a signal) and whether time ran out."""
        deadline = time.monotonic() + timeout_seconds + START_SECONDS
        with contextlib.ExitStack() as stack:
            options: dict[str, Any] = {}
            if self._launch:
                command = [*self._launch.command, self._harness]
                options = self._launch.process_options
            else:
                folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="amigo-unprotected-"))
                command = [sys.executable, "-I", "-S", "-B", "-c", self._harness]
                options = {"cwd": folder, "env": {"HOME": folder, "TMPDIR": folder, **_essential_environment()}}
            try:
                process = subprocess.Popen(
                    command,
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.STDOUT,
                    start_new_session=os.name == "posix",
                    **options,
                )
            except OSError as error:
                raise AmigoError(f"{command[0]} can't be started ({error.strerror})", self.fix) from error
            received: list[bytes] = []
            talk = threading.Thread(target=_talk, args=(process, request, received), daemon=True)
            talk.start()
            timed_out = False
            try:
                talk.join(max(0.0, deadline - time.monotonic()))
                # A program may close the descriptor and go on; one that says too much isn't waited for.
                if not received or len(received[0]) < _VERDICT_BYTES:
                    process.wait(max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                timed_out = True
            finally:
                _end(process, talk)
            return (received[0] if received else b""), process.returncode, timed_out


def _talk(process: subprocess.Popen[bytes], request: bytes, received: list[bytes]) -> None:
    """In a thread, so that a program which neither reads nor writes can't hold us beyond its time."""
    assert process.stdin and process.stdout
    with contextlib.suppress(OSError, ValueError):  # it died before it read everything
        process.stdin.write(request)
        process.stdin.close()
    with contextlib.suppress(OSError, ValueError):
        received.append(process.stdout.read(_VERDICT_BYTES))


def _end(process: subprocess.Popen[bytes], talk: threading.Thread) -> None:
    """Ends what is left of it. Under bubblewrap the death of the outer process ends the whole PID namespace."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        if os.name == "posix":
            os.killpg(process.pid, signal.SIGKILL)
        else:
            process.kill()
    process.wait()
    # Without a sandbox a program may leave behind a process that keeps the pipe open: not waited for.
    talk.join(1.0)
    for pipe in (process.stdin, process.stdout):
        if pipe and not talk.is_alive():
            with contextlib.suppress(OSError, ValueError):
                pipe.close()


def _judge(output: bytes, code: int, timed_out: bool, nonce: bytes, timeout_seconds: float) -> Verdict:
    if output == b"passed " + nonce:
        return Verdict(True, "passed")
    said = output.decode("utf-8", "replace").strip()[:_DETAIL_CHARACTERS]
    if output.startswith(b"failed "):
        return Verdict(False, "failed", said.removeprefix("failed "))
    # bubblewrap reports the signal that ended its child as 128 + number; SIGXCPU is RLIMIT_CPU's.
    if timed_out or code in (-getattr(signal, "SIGXCPU", 0), 128 + getattr(signal, "SIGXCPU", 0)):
        return Verdict(False, "timeout", f"not finished after {timeout_seconds:g} s")
    if code == 0:
        return Verdict(False, "no-nonce", "it ended before its checks did")
    ending = f"signal {-code if code < 0 else code - 128}" if code < 0 or code > 128 else f"exit status {code}"
    return Verdict(False, "crashed", f"{ending}{': ' + said if said else ''}")


def _essential_environment() -> dict[str, str]:
    """Windows can't start Python without SYSTEMROOT."""
    return {name: os.environ[name] for name in ("SYSTEMROOT",) if name in os.environ}
