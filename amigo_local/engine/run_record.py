"""What was asked in a run, kept beside its journal so that it can be asked again."""

from __future__ import annotations

from typing import Any

import msgspec

from amigo_local.domain.errors import InputError
from amigo_local.domain.settings import ProgramSettings
from amigo_local.domain.strict import Strict
from amigo_local.engine.workspace import Workspace, write_synced

RUN_NAME = "run.json"


class RunRecord(Strict, frozen=True, kw_only=True):
    """`runs/ID/run.json`."""

    run_id: str
    verb: str
    title: str
    params: dict[str, Any]
    settings: ProgramSettings


def read_run(workspace: Workspace, run_id: str) -> RunRecord:
    """What was asked in that run. Raises InputError when there is no such run."""
    try:
        return msgspec.json.decode((workspace.runs_dir / run_id / RUN_NAME).read_bytes(), type=RunRecord)
    except OSError as error:
        raise InputError(f"there is no run {run_id} in {workspace.root}", "amigo-local runs ls") from error
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise InputError(f"run {run_id} was written by another version: {error}", "start it anew") from error


def write_run(workspace: Workspace, record: RunRecord) -> None:
    path = workspace.runs_dir / record.run_id / RUN_NAME
    aside = path.with_name(f"{RUN_NAME}.partial")
    write_synced(aside, msgspec.json.format(msgspec.json.encode(record), indent=1))
    aside.replace(path)
