"""`python -m amigo_local.worker`: runs one stage, apart from the face that asked for it.

File descriptor 1 belongs to records alone: what native code or a library prints lands on stderr.
The job arrives as one JSON line on stdin. After it, a line `cancel` asks the stage to stop at its
next event, and the end of stdin means that whoever asked is gone, so the worker goes too.
"""

from __future__ import annotations

import errno
import os
import sys
import threading
import time
import traceback
from collections.abc import Callable
from typing import BinaryIO

import msgspec
import psutil

from amigo_local.domain.errors import EXIT_CANCELLED, EXIT_DONE, EXIT_FAILED, AmigoError, Cancelled
from amigo_local.domain.events import AnyEvent, Progress, Record, StageCancelled, StageFailed, encode_record
from amigo_local.engine.execute import Job, execute
from amigo_local.stages import load_stage

WriteLine = Callable[[bytes], None]
PROGRESS_SECONDS = 0.1
"""Progress of one label is sent no oftener, but for its end: a 12B export has tens of thousands of chunks."""


def main() -> int:
    """Takes the job, runs it, reports. The exit code is that of the outcome."""
    records = own_stdout()
    spare_a_core()
    job = msgspec.json.decode(sys.stdin.buffer.readline(), type=Job)
    cancelled = threading.Event()
    threading.Thread(target=watch, args=(sys.stdin.buffer, cancelled), daemon=True).start()
    return run_job(job, cancelled, records)


def spare_a_core() -> None:
    """OpenMP threads wait for each other by spinning: on a machine that does anything else, all
    cores together are many times slower than all but one. Set before torch is imported."""
    cores = psutil.cpu_count(logical=False) or os.cpu_count() or 1
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, cores - 1)))


def own_stdout() -> WriteLine:
    """Keeps the real stdout for records and points descriptor 1 at stderr, for C code too."""
    descriptor = os.dup(1)
    os.dup2(2, 1)

    def write(line: bytes) -> None:
        data = memoryview(line + b"\n")
        while data:
            data = data[os.write(descriptor, data) :]

    return write


def watch(stdin: BinaryIO, cancelled: threading.Event) -> None:
    """Sets `cancelled` on request; ends the process when the other end is gone."""
    for line in stdin:
        if line.strip() == b"cancel":
            cancelled.set()
    os._exit(EXIT_CANCELLED)


def run_job(job: Job, cancelled: threading.Event, write: WriteLine, clock: Callable[[], float] = time.monotonic) -> int:
    """Runs the stage, writing every event as a Record; returns the exit code. `clock` (seconds) thins progress out."""
    seq = job.next_seq
    lock = threading.Lock()  # stages may emit from a thread of theirs

    def send(event: AnyEvent) -> None:
        nonlocal seq
        with lock:
            write(encode_record(Record(job.run_id, seq, time.time(), job.stage, event)))
            seq += 1

    shown = ("", 0.0)  # label and time of the last progress that was sent

    def emit(event: AnyEvent) -> None:
        nonlocal shown
        if cancelled.is_set():
            raise Cancelled
        if isinstance(event, Progress):
            now = clock()
            if event.label == shown[0] and event.done != event.total and now - shown[1] < PROGRESS_SECONDS:
                return
            shown = (event.label, now)
        send(event)

    try:
        send(execute(load_stage(job.stage), job, emit))
    except (Cancelled, KeyboardInterrupt):
        send(StageCancelled())
        return EXIT_CANCELLED
    except AmigoError as error:
        send(StageFailed(error.message, error.hint, error.exit_code, traceback.format_exc()))
        return error.exit_code
    except Exception as error:  # noqa: BLE001  # an entry point: a person gets a sentence, the journal the traceback
        send(unexpected(error))
        return EXIT_FAILED
    return EXIT_DONE


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


if __name__ == "__main__":
    sys.stderr.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]  # stderr is a TextIOWrapper here
    code = main()
    sys.stderr.flush()
    # Skips interpreter teardown: torch and llama.cpp free gigabytes one by one, and may crash doing so.
    os._exit(code)
