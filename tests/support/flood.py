"""A run that says far more than any real one: a process that holds it and writes its journal at a given rate.

`python -m tests.support.flood HOME RUN_ID RECORDS_PER_SECOND SECONDS`
"""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import msgspec

from amigo_local.domain.events import (
    AnyEvent,
    MetricLogged,
    Note,
    Progress,
    Record,
    RunFinished,
    RunStarted,
    StageFinished,
    StageStarted,
    TokenGenerated,
    encode_record,
)
from amigo_local.domain.settings import ProgramSettings
from amigo_local.domain.strict import Strict
from amigo_local.engine.journal import JOURNAL_NAME
from amigo_local.engine.lock import hold_run
from amigo_local.engine.run_record import RunRecord, write_run
from amigo_local.engine.workspace import Workspace

LAST_NOTE = "the flood is over"
LAST_FIGURE = {"written": "all of it"}
_PERIOD = 20
_NOTES = 1
_METRICS = 3
_PROGRESS = 6  # the rest are pieces of text


class FloodEnd(Strict, frozen=True):
    records: int
    seconds: float
    ended: float
    """By time.perf_counter, which is the same for all processes of a machine."""


def start_flood(home: Path, run_id: str, per_second: int, seconds: float) -> subprocess.Popen[str]:
    """Returns once the run is there and alive; the flood begins with a line on its stdin."""
    command = [sys.executable, "-m", "tests.support.flood", str(home), run_id, str(per_second), str(seconds)]
    here = Path(__file__).parents[2]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=here)
    assert process.stdout
    if process.stdout.readline() != "ready\n":
        raise RuntimeError("the flood did not start")
    return process


def begin(flood: subprocess.Popen[str]) -> None:
    assert flood.stdin
    flood.stdin.write("go\n")
    flood.stdin.flush()


def end_of(flood: subprocess.Popen[str]) -> FloodEnd:
    """Waits for it."""
    said, _ = flood.communicate()
    return msgspec.json.decode(said, type=FloodEnd)


def _event(number: int, total: int) -> AnyEvent:
    place = number % _PERIOD
    if place < _NOTES:
        return Note(f"record {number} of the flood")
    if place < _NOTES + _METRICS:
        return MetricLogged(number, {"loss": 2.0 / (1 + number / 1000), "tokens_per_second": 1000.0 + place})
    if place < _NOTES + _METRICS + _PROGRESS:
        return Progress("steps", number, total, "steps")
    return TokenGenerated(0, 0, f"piece {number} ")


def _flood(home: Path, run_id: str, per_second: int, seconds: float) -> FloodEnd:
    workspace = Workspace(home)
    folder = workspace.runs_dir / run_id
    folder.mkdir(parents=True)
    asked = RunRecord(run_id=run_id, verb="train", title="train flood", params={}, settings=ProgramSettings())
    write_run(workspace, asked)
    total, seq = int(per_second * seconds), 0
    with hold_run(folder, "train flood"), (folder / JOURNAL_NAME).open("ab") as journal:

        def write(events: list[AnyEvent]) -> None:
            nonlocal seq
            lines = []
            for event in events:
                lines.append(encode_record(Record(run_id, seq, time.time(), "train", event)) + b"\n")
                seq += 1
            journal.write(b"".join(lines))
            journal.flush()

        write([RunStarted("train", "train flood", ("train",)), StageStarted("f" * 16, "floods", seconds)])
        print("ready", flush=True)
        sys.stdin.readline()
        started, written = time.monotonic(), 0
        while written < total:
            due = min(total, int((time.monotonic() - started) * per_second))
            write([_event(number, total) for number in range(written, due)])
            written = due
            time.sleep(0.01)
        took = time.monotonic() - started
        write([Note(LAST_NOTE), StageFinished(None, took, 1 << 30, dict(LAST_FIGURE)), RunFinished(0, took)])
    return FloodEnd(seq, took, time.perf_counter())


if __name__ == "__main__":
    given_home, given_id, rate, length = sys.argv[1:]
    end = _flood(Path(given_home), given_id, int(rate), float(length))
    print(msgspec.json.encode(end).decode())
