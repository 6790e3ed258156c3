"""`python -m amigo_local.worker`: runs one stage, apart from the face that asked for it.

File descriptor 1 belongs to records alone: what native code or a library prints lands on stderr.
The job arrives as one JSON line on stdin. After it, a line `cancel` asks the stage to stop at its
next event, `pause` to wait there until `continue`, `stop` to end at its next checkpoint. The end of
stdin means that whoever asked is gone, so the worker goes too.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable
from typing import BinaryIO

import msgspec
import psutil

from amigo_local.domain.errors import EXIT_CANCELLED, EXIT_DONE, EXIT_FAILED, AmigoError, Cancelled
from amigo_local.domain.events import AnyEvent, Progress, Record, StageCancelled, encode_record
from amigo_local.engine.control import parse_command
from amigo_local.engine.entry import WriteLine, expected, own_stdout, unexpected
from amigo_local.engine.execute import Job, execute
from amigo_local.engine.steering import Steering
from amigo_local.stages import load_stage

PROGRESS_SECONDS = 0.1
"""Progress of one label is sent no oftener, but for its end: a 12B export has tens of thousands of chunks."""


def main() -> int:
    """Takes the job, runs it, reports. The exit code is that of the outcome."""
    records = own_stdout()
    spare_a_core()
    job = msgspec.json.decode(sys.stdin.buffer.readline(), type=Job)
    steering = Steering()
    threading.Thread(target=watch, args=(sys.stdin.buffer, steering), daemon=True).start()
    return run_job(job, steering, records)


def spare_a_core() -> None:
    """OpenMP threads wait for each other by spinning: on a machine that does anything else, all
    cores together are many times slower than all but one. Set before torch is imported."""
    cores = psutil.cpu_count(logical=False) or os.cpu_count() or 1
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, cores - 1)))


def watch(stdin: BinaryIO, steering: Steering) -> None:
    """Passes commands on; ends the process when the other end is gone."""
    for line in stdin:
        if command := parse_command(line.decode(errors="replace")):
            steering.obey(command)
    os._exit(EXIT_CANCELLED)


def run_job(job: Job, steering: Steering, write: WriteLine, clock: Callable[[], float] = time.monotonic) -> int:
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
        steering.raise_if_cancelled()
        now = clock() if isinstance(event, Progress) else 0.0
        if not isinstance(event, Progress):
            send(event)
        elif event.label != shown[0] or event.done == event.total or now - shown[1] >= PROGRESS_SECONDS:
            shown = (event.label, now)
            send(event)
        steering.wait_while_paused()

    try:
        send(execute(load_stage(job.stage), job, emit, steering))
    except (Cancelled, KeyboardInterrupt):
        send(StageCancelled())
        return EXIT_CANCELLED
    except AmigoError as error:
        send(expected(error))
        return error.exit_code
    except Exception as error:  # noqa: BLE001  # an entry point: a person gets a sentence, the journal the traceback
        send(unexpected(error))
        return EXIT_FAILED
    return EXIT_DONE


if __name__ == "__main__":
    sys.stderr.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]  # stderr is a TextIOWrapper here
    code = main()
    sys.stderr.flush()
    # Skips interpreter teardown: torch and llama.cpp free gigabytes one by one, and may crash doing so.
    os._exit(code)
