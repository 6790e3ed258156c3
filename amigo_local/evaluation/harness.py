"""Runs one program inside the sandbox and reports on a private descriptor; executed as text by `python -c`.

It stands alone (nothing of ours can be imported in there) and is written for a hostile program:
whatever it needs after the program ran is bound before, the verdict leaves through a descriptor
with a random number, and the nonce that makes a verdict count stays unread in a pipe until the last
check has passed. So `os._exit(0)`, `sys.exit()`, printing and patching `os` or `builtins` prove nothing.
"""

from __future__ import annotations

import json
import os
import random
import sys
from types import TracebackType

NONCE_LENGTH = 32
NOBODY = 65534


def main() -> None:
    """Reads an 8-byte length, that many bytes of JSON (`program`, limits), and leaves the nonce behind them."""
    read, write, leave, run = os.read, os.write, os._exit, exec
    requests, verdicts = _move_away(0), _move_away(1)
    size = int.from_bytes(_exactly(requests, 8), "big")
    job = json.loads(_exactly(requests, size))
    nowhere = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(nowhere, descriptor)
    _confine(job)
    program: str = job["program"]
    try:
        # Not "__main__": a demonstration under `if __name__ == "__main__":` isn't part of an answer.
        run(compile(program, "program", "exec"), {"__name__": "program"})
    except BaseException as error:  # noqa: BLE001 -- SystemExit and KeyboardInterrupt are failures too
        write(verdicts, b"failed " + _describe(error, program).encode("utf-8", "replace")[:2000])
        leave(1)
    nonce = b""
    while len(nonce) < NONCE_LENGTH:
        piece = read(requests, NONCE_LENGTH - len(nonce))
        if not piece:
            leave(3)
        nonce += piece
    write(verdicts, b"passed " + nonce)
    leave(0)


def _move_away(descriptor: int) -> int:
    """A copy under a number that a program can't know beforehand."""
    try:
        import fcntl
    except ImportError:  # Windows
        return os.dup(descriptor)
    return fcntl.fcntl(descriptor, fcntl.F_DUPFD_CLOEXEC, random.SystemRandom().randrange(100, 900))


def _exactly(descriptor: int, count: int) -> bytes:
    data = b""
    while len(data) < count:
        piece = os.read(descriptor, count - len(data))
        if not piece:
            os._exit(3)
        data += piece
    return data


def _confine(job: dict[str, int]) -> None:
    """Resource limits, and away from root: RLIMIT_NPROC doesn't bind root."""
    try:
        import resource
    except ImportError:  # Windows
        return
    limits = [("RLIMIT_AS", job["memory_bytes"]), ("RLIMIT_CPU", job["cpu_seconds"] + 1)]
    limits += [("RLIMIT_FSIZE", job["file_bytes"]), ("RLIMIT_CORE", 0), ("RLIMIT_NOFILE", 1024)]
    for name, value in limits:
        hard = resource.getrlimit(getattr(resource, name))[1]
        value = value if hard == resource.RLIM_INFINITY else min(value, hard)
        try:
            # At the soft limit of CPU time SIGXCPU comes, which tells a timeout from a crash.
            soft = value - 1 if name == "RLIMIT_CPU" else value
            resource.setrlimit(getattr(resource, name), (soft, value))
        except (OSError, ValueError):
            if sys.platform == "linux":  # macOS refuses RLIMIT_AS
                raise
    if job["become_nobody"]:
        os.setgroups([])
        os.setresgid(NOBODY, NOBODY, NOBODY)
        os.setresuid(NOBODY, NOBODY, NOBODY)
    if job["processes"]:
        resource.setrlimit(resource.RLIMIT_NPROC, (job["processes"], job["processes"]))


def _describe(error: BaseException, program: str) -> str:
    """`AssertionError: message (line 7: assert f(1) == 2)`."""
    try:
        text = f"{type(error).__name__}: {error}"[:1000]
    except BaseException:  # noqa: BLE001 -- an exception class of the program's own
        text = type(error).__name__
    line, trace = None, error.__traceback__
    while isinstance(trace, TracebackType):
        if trace.tb_frame.f_code.co_filename == "program":
            line = trace.tb_lineno
        trace = trace.tb_next
    lines = program.splitlines()
    return text if line is None or line > len(lines) else f"{text} (line {line}: {lines[line - 1].strip()[:300]})"


if __name__ == "__main__":
    main()
