"""Watches a run that another process is busy with, or was: the same records, the same outcome."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import msgspec

from amigo_local.domain.errors import EXIT_CANCELLED, EXIT_FAILED, Cancelled
from amigo_local.domain.events import Note, Record, RunFinished, RunStarted, StageFailed
from amigo_local.engine.follow import follow
from amigo_local.engine.journal import JOURNAL_NAME, read_journal
from amigo_local.engine.lock import is_alive


class Watched(msgspec.Struct, frozen=True):
    """How it ended; that it is watched no longer is no failure, and has the exit code of being cancelled."""

    exit_code: int
    error: StageFailed | None = None


def watch(
    run_folder: Path,
    on_record: Callable[[Record], None],
    wait: Callable[[float], object] = time.sleep,
    clock: Callable[[], float] = time.time,
) -> Watched:
    """Hands on the records since the run's last start, and all that come, until it ends.

    wait: sleeps so many seconds; Cancelled or KeyboardInterrupt from it or from `on_record` ends the watching alone.
    """
    run_id, seq = run_folder.name, 0

    def say(note: Note) -> None:
        on_record(Record(run_id, seq, clock(), "runs", note))

    starts = [r.seq for r in read_journal(run_folder / JOURNAL_NAME) if isinstance(r.event, RunStarted)]
    exit_code: int | None = None
    error: StageFailed | None = None
    try:
        if is_alive(run_folder):
            say(Note(f"run {run_id} is going on; Ctrl-C ends the watching, not the run"))
        for record in follow(run_folder, after_seq=max(starts, default=0) - 1, wait=wait):
            seq = record.seq + 1
            on_record(record)
            match record.event:
                case RunStarted():
                    exit_code = error = None  # somebody went on with it meanwhile
                case RunFinished():
                    exit_code = record.event.exit_code
                case StageFailed():
                    error = record.event
    except (Cancelled, KeyboardInterrupt):
        how = f"amigo-local runs watch {run_id}, or end it: amigo-local runs cancel {run_id}"
        say(Note(f"no longer watched; the run goes on: {how}"))
        return Watched(EXIT_CANCELLED)
    if exit_code is None:
        text = f"run {run_id} was cut: its process ended without a word"
        say(Note(text, "problem", f"amigo-local runs resume {run_id}"))
        return Watched(EXIT_FAILED, error)
    return Watched(exit_code, error if exit_code else None)
