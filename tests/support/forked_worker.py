"""Real workers that start at once and die on request: a warm process forks each one, and SIGKILL ends it.

`python forked_worker.py serve SOCKET` imports what workers import, then forks one worker per request.
`python forked_worker.py run SOCKET` stands where `python -m amigo_local.worker` would: it hands its
streams to a new worker and ends as that one ends, by the same signal or exit code. With
AMIGO_TEST_KILL="STAGE COUNT" the worker of that stage gets SIGKILL right after its COUNT-th record;
with "STAGE COUNT every" no progress is thinned out, so that there are more records to die after.
"""

from __future__ import annotations

import contextlib
import gc
import os
import signal
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

VARIABLE = "AMIGO_TEST_KILL"


def serve(address: str) -> None:
    """Forks a worker per connection; ends when its own stdin does."""
    import bitsandbytes  # noqa: F401  # imported once here, so that each fork has it
    import datasets  # noqa: F401
    import llama_cpp  # noqa: F401
    import peft  # noqa: F401
    import torch  # noqa: F401  # its thread pools must not start before the fork
    import transformers
    import transformers.models.llama.modeling_llama
    import trl

    _ = (transformers.AutoModelForCausalLM, transformers.AutoTokenizer, trl.SFTTrainer)  # lazy ones too
    gc.collect()
    gc.freeze()  # else each fork's collector walks through a million objects, and so copies their pages
    waiting: dict[int, socket.socket] = {}

    def tell_how_it_ended(*_: object) -> None:
        with contextlib.suppress(ChildProcessError):
            while (ended := os.waitpid(-1, os.WNOHANG))[0]:
                with waiting.pop(ended[0]) as connection, contextlib.suppress(OSError):
                    connection.sendall(struct.pack("i", ended[1]))

    signal.signal(signal.SIGCHLD, tell_how_it_ended)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(address)
        listener.listen()
        while True:
            connection, _ = listener.accept()
            kill, streams, _, _ = socket.recv_fds(connection, 200, 3)
            signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGCHLD})  # it may end before it is noted
            worker = os.fork()
            if worker == 0:
                listener.close()
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGCHLD})
                os.setpgid(0, 0)
                for target, stream in enumerate(streams):
                    os.dup2(stream, target)
                _work(kill.decode())
            waiting[worker] = connection
            signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGCHLD})
            for stream in streams:
                os.close(stream)


def _work(kill: str) -> None:
    import msgspec

    from amigo_local import worker
    from amigo_local.engine.execute import Job
    from amigo_local.engine.steering import Steering

    sys.stdin = open(0, closefd=False)  # noqa: SIM115  # stays open for the life of the process
    write = worker.own_stdout()
    line = sys.stdin.buffer.readline()
    job = msgspec.json.decode(line, type=Job)
    stage, *how = kill.split() or [""]
    if stage == job.stage:
        write = _deadly(write, int(how[0]))
    import itertools

    # With a clock that stands, or that ticks when it is read, the same work gives the same records however fast the
    # machine is.
    clock = itertools.count().__next__ if "every" in how else lambda: 0
    os._exit(worker.run_job(job, Steering(), write, clock=clock))


def _deadly(write: Callable[[bytes], None], count: int) -> Callable[[bytes], None]:
    left = count

    def counted(line: bytes) -> None:
        nonlocal left
        write(line)
        left -= 1
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
            time.sleep(60)

    return counted


def run(address: str) -> None:
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(address)
        socket.send_fds(connection, [os.environ.get(VARIABLE, " ").encode()], [0, 1, 2])
        reply = connection.recv(4)
    if len(reply) < 4:
        sys.exit("the forking server is gone")
    (status,) = struct.unpack("i", reply)
    if os.WIFSIGNALED(status):
        os.kill(os.getpid(), os.WTERMSIG(status))
    sys.exit(os.waitstatus_to_exitcode(status))


@contextlib.contextmanager
def forking_workers(folder: Path) -> Iterator[tuple[str, ...]]:
    """The command of a worker that starts warm, while the block lasts."""
    address = folder / "workers"
    server = subprocess.Popen([sys.executable, __file__, "serve", str(address)], start_new_session=True)
    try:
        deadline = time.monotonic() + 120
        while not address.exists():
            if server.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError("the forking server did not start")
            time.sleep(0.05)
        yield (sys.executable, "-S", __file__, "run", str(address))
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(server.pid, signal.SIGKILL)
        server.wait()


if __name__ == "__main__":
    {"serve": serve, "run": run}[sys.argv[1]](sys.argv[2])
