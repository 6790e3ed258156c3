"""runs: what was run, what it made, what it takes on disk; watches, steers and goes on with a run; cleans up."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated, Literal

import msgspec

from amigo_local.domain.artifact import Artifact, Figure
from amigo_local.domain.errors import EXIT_CANCELLED, EXIT_DONE, InputError
from amigo_local.domain.events import (
    Column,
    RunContinued,
    RunFinished,
    RunPaused,
    RunStarted,
    StageCancelled,
    StageFailed,
    StageFinished,
    StageSkipped,
    StageStarted,
    Table,
)
from amigo_local.domain.units import format_size
from amigo_local.engine.contract import Params, Stage, StageContext, StageResult, argument, option
from amigo_local.engine.control import Command, send_command, tell_run
from amigo_local.engine.fingerprint import size_of
from amigo_local.engine.journal import JOURNAL_NAME, read_journal
from amigo_local.engine.live_runs import live_runs
from amigo_local.engine.lock import hold_home, is_alive
from amigo_local.engine.run_record import RunRecord, read_run
from amigo_local.engine.workspace import Workspace, is_intact, remove

Action = Literal["ls", "show", "watch", "pause", "stop", "cancel", "resume", "clean"]
_ASKED: dict[str, str] = {
    "pause": "will pause at its next event and keep its memory; to go on: amigo-local runs resume {0}",
    "stop": "will end after its next checkpoint, or before its next stage; to go on then: amigo-local runs resume {0}",
    "cancel": "will end at its next event; what is done is kept, to go on then: amigo-local runs resume {0}",
}


class RunsParams(Params, frozen=True, kw_only=True):
    action: Annotated[Action, argument("ls, show, watch, pause, stop, cancel, resume or clean.")] = "ls"
    id: Annotated[
        str | None,
        argument("Run to show, watch, pause, stop, cancel or resume; default: one that is going on, or the newest."),
    ] = None
    yes: Annotated[bool, option("clean: free what was shown.")] = False
    all: Annotated[bool, option("clean: also artifacts that finished runs made, but for the newest run's.")] = False


def run(params: RunsParams, context: StageContext) -> StageResult:
    match params.action:
        case "show":
            _show(params.id or newest_run(context.workspace), context)
        case "pause" | "stop" | "cancel" as command:
            _command(command, params.id, context)
        case "clean":
            _clean(params, context)
        case _:  # watch and resume never get here: `follows` and `again` take them to the run itself
            _list(context)
    return StageResult()


def follows(params: RunsParams, workspace: Workspace) -> str | None:
    """The run to watch; one that is paused goes on when it is to be resumed. Raises InputError when there is none."""
    if params.action == "watch":
        run_id = params.id or newest_run(workspace)
        read_run(workspace, run_id)
        return run_id
    if params.action != "resume":
        return None
    run_id = params.id or _to_resume(workspace)
    folder = workspace.runs_dir / run_id
    if not is_alive(folder):
        return None
    send_command(folder, "continue")
    return run_id


def again(params: RunsParams, workspace: Workspace) -> RunRecord | None:
    """The run to go on with. Raises InputError when there is none of that id."""
    if params.action != "resume":
        return None
    return read_run(workspace, params.id or _to_resume(workspace))


def _to_resume(workspace: Workspace) -> str:
    """One that waits to be told so, else the newest."""
    live = live_runs(workspace.runs_dir)
    waiting = [run_id for run_id in reversed(live) if _state(workspace, run_id).state == "paused"]
    return waiting[0] if waiting else _newest(workspace)


def newest_run(workspace: Workspace) -> str:
    """Id of the newest run that is going on, else of the one that was written to last. Raises InputError when there
    is none."""
    live = live_runs(workspace.runs_dir)
    return live[-1] if live else _newest(workspace)


def _newest(workspace: Workspace) -> str:
    found = run_ids(workspace)
    if not found:
        raise InputError(f"there are no runs in {workspace.root}", "start one: amigo-local run RECIPE")
    return found[-1]


def run_ids(workspace: Workspace) -> list[str]:
    """Oldest first, by when each was last written to."""
    journals = list(workspace.runs_dir.glob(f"*/{JOURNAL_NAME}"))
    return [path.parent.name for path in sorted(journals, key=lambda path: path.stat().st_mtime)]


class _State(msgspec.Struct, frozen=True):
    """How a run stands."""

    started: float
    """Seconds since the epoch, of its first record."""
    worked_seconds: float
    """Up to its last record, without pauses and the time between a cut and its going on."""
    state: str


def _state(workspace: Workspace, run_id: str) -> _State:
    folder = workspace.runs_dir / run_id
    live = is_alive(folder)
    started, before, worked, state = 0.0, 0.0, 0.0, ""
    for record in read_journal(folder / JOURNAL_NAME):
        started = started or record.time
        if before and state == "" and not isinstance(record.event, RunStarted):
            worked += record.time - before
        before = record.time
        match record.event:
            case RunFinished() as finished:
                state = {EXIT_DONE: "done", EXIT_CANCELLED: "cancelled"}.get(finished.exit_code, "failed")
            case RunPaused():
                state = "paused"
            case RunStarted() | RunContinued():
                state = ""
    if live:
        return _State(started, worked, state if state == "paused" else "running")
    cut = state in ("", "paused")
    return _State(started, worked, f"cut: amigo-local runs resume {run_id}" if cut else state)


def _command(command: Command, run_id: str | None, context: StageContext) -> None:
    workspace = context.workspace
    run_id = run_id or newest_run(workspace)
    title = read_run(workspace, run_id).title
    tell_run(workspace.runs_dir / run_id, command, title)
    context.note(f"run {run_id} (`{title}`) {_ASKED[command].format(run_id)}", "good")


def _list(context: StageContext) -> None:
    workspace = context.workspace
    rows: list[tuple[Figure, ...]] = []
    for run_id in run_ids(workspace):
        found = _state(workspace, run_id)
        try:
            title = read_run(workspace, run_id).title
        except InputError:
            title = "can't be read: of another version"
        when = time.strftime("%Y-%m-%d %H:%M", time.localtime(found.started)) if found.started else ""
        rows.append((run_id, title, when, found.worked_seconds, found.state))
    columns = (Column("run"), Column("what"), Column("started"), Column("took", "seconds"), Column("state"))
    context.emit(Table("Runs", columns, tuple(rows)))
    artifacts = list(workspace.artifacts())
    total = sum(artifact.size_bytes for artifact in artifacts)
    unfinished = sum(size_of(path) for path in workspace.unfinished())
    context.note(
        f"{len(artifacts)} artifacts, {format_size(total)};"
        f" unfinished work {format_size(unfinished)}; in {workspace.root}"
    )


def _show(run_id: str, context: StageContext) -> None:
    record = read_run(context.workspace, run_id)
    context.note(f"{run_id}: amigo-local {record.title}")
    rows: list[tuple[Figure, ...]] = []
    made: list[Artifact] = []
    recipe: dict[str, str] = {}
    """Stage -> the one it is at work for, in a chain of several."""
    for line in read_journal(context.workspace.runs_dir / run_id / JOURNAL_NAME):
        match line.event:
            case StageStarted() | StageSkipped():
                recipe[line.stage] = line.event.of
        of = recipe.get(line.stage, "")
        stage = f"{line.stage} of {of}" if of else line.stage
        match line.event:
            case StageFinished() as done:
                path = done.artifact.path if done.artifact else None
                rows.append((stage, "done", done.elapsed_seconds, done.peak_rss_bytes, path))
                made += [done.artifact] if done.artifact else []
            case StageSkipped() as skipped:
                rows.append((stage, "was done", None, None, skipped.artifact.path))
            case StageFailed() as failed:
                hint = f"; hint: {failed.hint}" if failed.hint else ""
                rows.append((stage, f"failed: {failed.message}{hint}", None, None, None))
                if failed.detail:
                    context.note(failed.detail.rstrip())
            case StageCancelled():
                rows.append((stage, "cancelled", None, None, None))
    columns = (
        Column("stage"),
        Column("outcome"),
        Column("took", "seconds"),
        Column("peak RAM", "bytes"),
        Column("artifact"),
    )
    context.emit(Table("Stages", columns, tuple(rows)))
    for artifact in made:
        figures = tuple((name, _shown(value)) for name, value in artifact.figures.items())
        context.emit(Table(f"{artifact.stage}: figures", (Column("figure"), Column("value")), figures))


def _shown(value: Figure) -> Figure:
    return f"{value:.6g}" if isinstance(value, float) else value


def _clean(params: RunsParams, context: StageContext) -> None:
    """Shows what would go; frees it only with --yes, under the home's lock."""
    workspace = context.workspace
    broken = [artifact for artifact in workspace.artifacts() if not is_intact(artifact)]
    going = broken + (_superseded(workspace) if params.all else [])
    leftovers = workspace.unfinished() + _unclaimed(workspace)
    rows: list[tuple[Figure, ...]] = [(str(path), "unfinished", size_of(path)) for path in leftovers]
    rows += [
        (a.path, "gone or changed" if a in broken else "of an older run", 0 if a in broken else a.size_bytes)
        for a in going
    ]
    columns = (Column("path"), Column("why"), Column("frees", "bytes"))
    context.emit(Table("To be freed" if params.yes else "Would be freed", columns, tuple(rows)))
    if not rows:
        context.note("nothing to clean" + ("" if params.all else "; --all also offers artifacts of older runs"))
    elif not params.yes:
        context.note("nothing was removed", fix=f"amigo-local runs clean{' --all' if params.all else ''} --yes")
    else:
        with hold_home(workspace.root, "amigo-local runs clean"):
            for artifact in going:
                workspace.forget(artifact)
            for path in leftovers:
                remove(path)
        context.note(f"freed {format_size(sum(int(row[2] or 0) for row in rows))}", "good")


def _superseded(workspace: Workspace) -> list[Artifact]:
    """Artifacts in this home that neither the newest run that made or used any nor one that is going on has to do with;
    registered files are kept."""
    from amigo_local.stages._models import run_artifacts

    runs = [(run_id, run_artifacts(workspace, run_id)) for run_id in run_ids(workspace)]
    newest = [made for _, made in runs if made][-1:]
    alive = set(live_runs(workspace.runs_dir))
    live = [made for run_id, made in runs if run_id in alive]
    kept = {artifact.fingerprint for made in newest + live for artifact in made}
    everything = list(workspace.artifacts())
    served = {str(artifact.figures.get("gguf")) for artifact in everything if artifact.kind == "registration"}
    return [
        artifact
        for artifact in everything
        if artifact.fingerprint not in kept
        and artifact.path not in served
        and artifact.kind != "registration"
        and workspace.artifacts_dir in Path(artifact.path).parents
    ]


def _unclaimed(workspace: Workspace) -> list[Path]:
    """Folders among the artifacts that no record claims."""
    claimed = {workspace.default_path(a.stage, a.fingerprint) for a in workspace.artifacts()}
    folders = [path for path in workspace.artifacts_dir.glob("*") if path.is_dir() and path.suffix != ".partial"]
    return [path for path in folders if path not in claimed]


STAGE = Stage(
    "runs",
    "List, show, watch, pause, stop, cancel, resume or clean up runs.",
    RunsParams,
    run,
    place="here",
    locks=False,
    again=again,
    follows=follows,
)
