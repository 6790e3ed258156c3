"""runs: what was run, what it made, what it takes on disk; goes on with a cut run; cleans up."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated, Literal

import msgspec

from amigo_local.domain.artifact import Artifact, Figure
from amigo_local.domain.errors import InputError
from amigo_local.domain.events import (
    Column,
    RunFinished,
    StageCancelled,
    StageFailed,
    StageFinished,
    StageSkipped,
    StageStarted,
    Table,
)
from amigo_local.domain.units import format_size
from amigo_local.engine.contract import Params, RunRecord, Stage, StageContext, StageResult, argument, option
from amigo_local.engine.fingerprint import size_of
from amigo_local.engine.journal import JOURNAL_NAME, read_journal
from amigo_local.engine.lock import hold_home
from amigo_local.engine.workspace import Workspace, is_intact, remove


class RunsParams(Params, frozen=True, kw_only=True):
    action: Annotated[Literal["ls", "show", "resume", "clean"], argument("ls, show, resume or clean.")] = "ls"
    id: Annotated[str | None, argument("Run to show or resume; default: the newest.")] = None
    yes: Annotated[bool, option("clean: free what was shown.")] = False
    all: Annotated[bool, option("clean: also artifacts that finished runs made, but for the newest run's.")] = False


def run(params: RunsParams, context: StageContext) -> StageResult:
    match params.action:
        case "ls" | "resume":  # resume never gets here: `again` takes it to the run itself
            _list(context)
        case "show":
            _show(params.id or newest_run(context.workspace), context)
        case "clean":
            _clean(params, context)
    return StageResult()


def again(params: RunsParams, workspace: Workspace) -> RunRecord | None:
    """The run to go on with. Raises InputError when there is none of that id."""
    if params.action != "resume":
        return None
    return read_run(workspace, params.id or newest_run(workspace))


def newest_run(workspace: Workspace) -> str:
    """Id of the run that was written to last. Raises InputError when there is none."""
    found = run_ids(workspace)
    if not found:
        raise InputError(f"there are no runs in {workspace.root}", "start one: amigo-local run RECIPE")
    return found[-1]


def run_ids(workspace: Workspace) -> list[str]:
    """Oldest first, by when each was last written to."""
    journals = list(workspace.runs_dir.glob(f"*/{JOURNAL_NAME}"))
    return [path.parent.name for path in sorted(journals, key=lambda path: path.stat().st_mtime)]


def read_run(workspace: Workspace, run_id: str) -> RunRecord:
    """What was asked in that run. Raises InputError when there is no such run."""
    try:
        return msgspec.json.decode((workspace.runs_dir / run_id / "run.json").read_bytes(), type=RunRecord)
    except OSError as error:
        raise InputError(f"there is no run {run_id} in {workspace.root}", "amigo-local runs ls") from error
    except msgspec.MsgspecError as error:
        raise InputError(f"run {run_id} was written by another version: {error}", "start it anew") from error


def _list(context: StageContext) -> None:
    workspace = context.workspace
    rows: list[tuple[Figure, ...]] = []
    for run_id in run_ids(workspace):
        started, ended, state = 0.0, 0.0, "cut: amigo-local runs resume"
        for record in read_journal(workspace.runs_dir / run_id / JOURNAL_NAME):
            started, ended = started or record.time, record.time
            if isinstance(record.event, RunFinished):
                code = record.event.exit_code
                state = {0: "done", 130: "cancelled"}.get(code, "failed")
            else:
                state = "cut: amigo-local runs resume"
        title = read_run(workspace, run_id).title
        when = time.strftime("%Y-%m-%d %H:%M", time.localtime(started)) if started else ""
        rows.append((run_id, title, when, ended - started, state))
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
    for line in read_journal(context.workspace.runs_dir / run_id / JOURNAL_NAME):
        match line.event:
            case StageFinished() as done:
                path = done.artifact.path if done.artifact else None
                rows.append((line.stage, "done", done.elapsed_seconds, done.peak_rss_bytes, path))
                made += [done.artifact] if done.artifact else []
            case StageSkipped() as skipped:
                rows.append((line.stage, "was done", None, None, skipped.artifact.path))
            case StageFailed() as failed:
                rows.append((line.stage, f"failed: {failed.message}", None, None, None))
                if failed.detail:
                    context.note(failed.detail.rstrip())
            case StageCancelled():
                rows.append((line.stage, "cancelled", None, None, None))
            case StageStarted():
                pass
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
    """Artifacts in this home that the newest run neither made nor used; registered files are kept."""
    from amigo_local.stages._models import run_artifacts

    ids = run_ids(workspace)
    kept = {artifact.fingerprint for artifact in run_artifacts(workspace, ids[-1])} if ids else set()
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
    "List, show, resume or clean up runs and what they made.",
    RunsParams,
    run,
    place="here",
    locks=False,
    again=again,
)
