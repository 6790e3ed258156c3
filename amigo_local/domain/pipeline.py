"""Pipeline: what a plan foresees and what a run has done so far, as one row of stages."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import msgspec

from amigo_local.domain.artifact import Artifact, Figure
from amigo_local.domain.events import Progress
from amigo_local.domain.plan import Needs, Plan, PlannedStage
from amigo_local.domain.run_state import RunState, StageState

PipelineStatus = Literal["done", "running", "paused", "next", "waiting", "stale", "failed", "cancelled"]
"""stale: it was made, and the recipe, the data or the model has changed since."""


class PipelineStage(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    stage: str
    of: str = ""
    """Name of its recipe, in a chain of several."""
    status: PipelineStatus
    is_next: bool = False
    """Whether it is what runs next: it may have failed, been cancelled or gone stale."""
    size_bytes: int | None = None
    """Of what it made; of what it will make when it isn't made yet."""
    seconds: float | None = None
    """What it took; what it is expected to take when it isn't done yet."""
    figures: dict[str, Figure] = {}
    progress: Progress | None = None
    summary: str = ""
    path: str | None = None
    error: str = ""


def pipeline(plan: Plan, run: RunState | None, *, planned_at: float, live: bool) -> list[PipelineStage]:
    """planned_at: seconds since the epoch; what the run did later isn't in the plan yet. live: whether the run goes on
    now; what seems to run in one that doesn't was cut."""
    rows: list[PipelineStage] = []
    found_next = False
    for place, planned in enumerate(plan.stages):
        occurrence = sum((p.stage, p.of) == (planned.stage, planned.of) for p in plan.stages[:place])
        state = _state_of(planned, occurrence, run)
        status = _status(planned, state, run, planned_at, live)
        is_next = not found_next and status != "done"
        found_next = found_next or is_next
        if is_next and status == "waiting":
            status = "next"
        rows.append(_row(planned, state, status, is_next and status not in ("running", "paused")))
    return rows


def pipeline_of_run(run: RunState, *, live: bool) -> list[PipelineStage]:
    """What a run did, where there is no plan to lay it beside."""
    rows = []
    for state in run.stages:
        seen = PlannedStage(stage=state.stage, summary=state.summary, status="to do", needs=Needs(), of=state.of)
        rows.append(_row(seen, state, _status(seen, state, run, 0.0, live), False))
    return rows


def _state_of(planned: PlannedStage, occurrence: int, run: RunState | None) -> StageState | None:
    """Of several of one name in the newest start of the run the one at that place."""
    found = [s for s in run.stages if (s.stage, s.of) == (planned.stage, planned.of)] if run else []
    newest = max((state.attempt for state in found), default=0)
    latest: Sequence[StageState] = [state for state in found if state.attempt == newest]
    return latest[occurrence] if occurrence < len(latest) else None


def _status(
    planned: PlannedStage, state: StageState | None, run: RunState | None, planned_at: float, live: bool
) -> PipelineStatus:
    if state and run and state.status == "running":
        if not live:
            return "cancelled"
        return "paused" if run.paused else "running"
    if planned.status == "done":
        return "done"
    if state is None:
        return "waiting"
    if state.status == "done":
        return "done" if state.ended is not None and state.ended >= planned_at else "stale"
    return "failed" if state.status == "failed" else "cancelled"


def _row(planned: PlannedStage, state: StageState | None, status: PipelineStatus, is_next: bool) -> PipelineStage:
    artifact: Artifact | None = planned.artifact
    if state and state.status == "done" and status in ("done", "stale"):
        artifact = state.artifact or artifact
    made = artifact is not None
    took = state.elapsed_seconds if state and status in ("done", "stale") else None
    return PipelineStage(
        stage=planned.stage,
        of=planned.of,
        status=status,
        is_next=is_next,
        size_bytes=artifact.size_bytes if artifact else _expected(planned.needs),
        seconds=took if took is not None or made else planned.needs.seconds,
        figures=artifact.figures if artifact else (state.figures if state and status == "done" else {}),
        progress=state.progress if state and status in ("running", "paused") else None,
        summary=planned.summary,
        path=artifact.path if artifact else None,
        error=state.error.message if state and state.error and status == "failed" else "",
    )


def _expected(needs: Needs) -> int | None:
    return needs.disk_bytes or None
