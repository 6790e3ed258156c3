"""Which runs of a home go on now, whoever started them, and what can be seen of them without reading journals."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from amigo_local.engine.journal import JOURNAL_NAME
from amigo_local.engine.lock import ALIVE_NAME, is_alive

REST_SECONDS = 4.0
"""Longer than the steps of most trainings, each of which would be a rest otherwise."""


def live_runs(runs_dir: Path, newest: int | None = None) -> list[str]:
    """Ids of those that a process holds, the oldest first; ids begin with when a run began. newest: look at so many."""
    ids = sorted(path.parent.name for path in runs_dir.glob(f"*/{ALIVE_NAME}"))
    return [run_id for run_id in (ids if newest is None else ids[-newest:]) if is_alive(runs_dir / run_id)]


class Sign(NamedTuple):
    """What can be seen of a run without reading its journal."""

    live: bool
    size_bytes: int
    """Of the journal."""
    grown: float
    """Monotonic seconds when that was seen to change."""


def signs_of(runs: Path, before: Mapping[str, Sign], now: float) -> dict[str, Sign]:
    """Of every run there, by its id."""
    found: dict[str, Sign] = {}
    for journal in runs.glob(f"*/{JOURNAL_NAME}"):
        try:
            size_bytes = journal.stat().st_size
        except OSError:  # removed meanwhile
            continue
        last = before.get(journal.parent.name)
        grown = last.grown if last and last.size_bytes == size_bytes else now
        found[journal.parent.name] = Sign(is_alive(journal.parent), size_bytes, grown)
    return found


def standing(signs: Mapping[str, Sign], now: float) -> dict[str, tuple[bool, bool]]:
    """For each run whether it is live, and whether it rests, as one that is paused. Differs only when the list of runs
    may say something new: a journal that merely grows doesn't count, so that a flood asks nothing."""
    return {key: (sign.live, sign.live and now - sign.grown >= REST_SECONDS) for key, sign in signs.items()}
