"""Runs that are over: what their journals add up to, read without keeping keys waiting."""

from __future__ import annotations

import asyncio
from pathlib import Path

from amigo_local.domain.run_state import RunState
from amigo_local.engine.follow import JournalFollower
from amigo_local.engine.journal import JOURNAL_NAME

_POLL_BYTES = 1 << 15
"""About a hundred records: a few milliseconds."""


async def read_past_run(run_folder: Path) -> RunState:
    """All that is written by now."""
    state, follower = RunState(run_id=run_folder.name), JournalFollower(run_folder / JOURNAL_NAME)
    while records := follower.poll(_POLL_BYTES):
        for record in records:
            state.apply(record)
        await asyncio.sleep(0)
    return state
