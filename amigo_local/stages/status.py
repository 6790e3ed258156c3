"""status: what is free, served and running now."""

from __future__ import annotations

import contextlib
from pathlib import Path

from amigo_local.domain.errors import InputError
from amigo_local.domain.events import MachineMeasured, OllamaState, RunningRun
from amigo_local.engine.contract import Params, Stage, StageContext, StageResult
from amigo_local.engine.journal import JOURNAL_NAME
from amigo_local.engine.live_runs import live_runs
from amigo_local.engine.lock import ALIVE_NAME
from amigo_local.engine.run_record import read_run
from amigo_local.engine.workspace import Workspace

_TAIL_BYTES = 1 << 16  # a paused run writes nothing behind its RunPaused but what its stage says on the way


class StatusParams(Params, frozen=True, kw_only=True):
    pass


def run(params: StatusParams, context: StageContext) -> StageResult:
    state, problem = _ollama(context)
    context.emit(
        MachineMeasured(
            machine=context.machine, ollama=state, ollama_problem=problem, running=running_runs(context.workspace)
        )
    )
    return StageResult()


def _ollama(context: StageContext) -> tuple[OllamaState | None, str]:
    """The server's state, or why there is none."""
    from amigo_local.serving.ollama_connection import server_url
    from amigo_local.serving.ollama_state import ollama_state

    if not context.settings.ollama.use:
        return None, "switched off (ollama.use=false)"
    try:
        return ollama_state(server_url(context.settings.ollama.host)), ""
    except InputError as error:
        return None, error.message


def running_runs(workspace: Workspace) -> tuple[RunningRun, ...]:
    """Runs that a process holds now, the oldest first."""
    found = []
    for run_id in live_runs(workspace.runs_dir):
        folder, title = workspace.runs_dir / run_id, ""
        with contextlib.suppress(InputError):  # just started, or written by another version
            title = read_run(workspace, run_id).title
        with contextlib.suppress(OSError):  # it was cleaned away meanwhile
            since = (folder / ALIVE_NAME).stat().st_mtime  # its owner signs it when the run starts
            found.append(RunningRun(run_id=run_id, title=title, since=since, paused=_is_paused(folder)))
    return tuple(sorted(found, key=lambda run: (run.since, run.run_id)))


def _is_paused(folder: Path) -> bool:
    """By the last of the journal alone, which may be long. In JSON a text can't hold an unescaped `"type":"…"`."""
    try:
        with (folder / JOURNAL_NAME).open("rb") as file:
            file.seek(max(0, file.seek(0, 2) - _TAIL_BYTES))
            tail = file.read()
    except OSError:
        return False
    ended = max(tail.rfind(b'"type":"run_continued"'), tail.rfind(b'"type":"run_started"'))
    return tail.rfind(b'"type":"run_paused"') > ended


STAGE = Stage("status", "What is free, served and running now.", StatusParams, run, place="here", locks=False)
