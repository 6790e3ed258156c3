from __future__ import annotations

from amigo_local.domain.artifact import Artifact
from amigo_local.domain.events import (
    AnyEvent,
    Progress,
    Record,
    RunFinished,
    RunPaused,
    RunStarted,
    StageFailed,
    StageFinished,
    StageStarted,
)
from amigo_local.domain.pipeline import pipeline
from amigo_local.domain.plan import Needs, Plan, PlannedStage
from amigo_local.domain.run_state import RunState

MADE = Artifact("dataset", "/a", "sha256:1", 500, "prepare", "f0", figures={"train_samples": 3})


def plan(*done: str, chain: bool = False) -> Plan:
    of = ["one", "two"] if chain else [""]
    stages = tuple(
        PlannedStage(
            stage=stage,
            summary=stage,
            status="done" if stage in done else "to do",
            needs=Needs(disk_bytes=9, seconds=60.0),
            artifact=MADE if stage in done else None,
            of=recipe,
        )
        for recipe in of
        for stage in ("prepare", "train", "export")
    )
    return Plan(recipe="r", model="m", stages=stages)


def run(*events: tuple[str, AnyEvent]) -> RunState:
    state = RunState()
    for seq, (stage, event) in enumerate([("run", RunStarted(verb="run", title="t")), *events]):
        state.apply(Record("r1", seq, 100.0 + seq, stage, event))
    return state


def statuses(plan: Plan, state: RunState | None, planned_at: float = 50.0, live: bool = True) -> list[str]:
    return [stage.status for stage in pipeline(plan, state, planned_at=planned_at, live=live)]


def test_without_a_run_the_first_that_is_not_done_is_next() -> None:
    assert statuses(plan(), None) == ["next", "waiting", "waiting"]
    assert statuses(plan("prepare"), None) == ["done", "next", "waiting"]
    assert statuses(plan("prepare", "train", "export"), None) == ["done", "done", "done"]


def test_what_runs_what_waits_and_what_was_cut() -> None:
    state = run(("train", StageStarted("f1", "s")), ("train", Progress("training", 3, 10, "steps")))
    rows = pipeline(plan("prepare"), state, planned_at=50.0, live=True)
    assert [row.status for row in rows] == ["done", "running", "waiting"]
    assert rows[1].progress == Progress("training", 3, 10, "steps")
    assert statuses(plan("prepare"), state, live=False) == ["done", "cancelled", "waiting"]
    state.apply(Record("r1", 9, 200.0, "train", RunPaused()))
    assert statuses(plan("prepare"), state) == ["done", "paused", "waiting"]


def test_what_was_made_since_the_plan_is_done_and_what_the_plan_no_longer_knows_is_stale() -> None:
    made = msg = StageFinished(MADE, 12.5, 1, {})
    state = run(("prepare", StageStarted("f0", "s")), ("prepare", made))
    assert msg.elapsed_seconds == 12.5
    fresh = pipeline(plan(), state, planned_at=50.0, live=True)
    assert (fresh[0].status, fresh[0].size_bytes, fresh[0].seconds) == ("done", 500, 12.5)
    assert fresh[1].is_next
    old = pipeline(plan(), state, planned_at=500.0, live=False)
    assert [row.status for row in old] == ["stale", "waiting", "waiting"]
    assert [row.is_next for row in old] == [True, False, False]


def test_a_failed_stage_is_next_and_tells_why() -> None:
    state = run(
        ("prepare", StageStarted("f0", "s")),
        ("prepare", StageFailed("no data", "add some", 1)),
        ("run", RunFinished(1, 1.0)),
    )
    rows = pipeline(plan(), state, planned_at=500.0, live=False)
    assert (rows[0].status, rows[0].error, rows[0].is_next) == ("failed", "no data", True)


def test_stages_of_a_chain_are_told_apart_by_their_recipe() -> None:
    state = run(("train", StageStarted("f1", "s", of="two")))
    rows = pipeline(plan("prepare", chain=True), state, planned_at=50.0, live=True)
    assert [(row.of, row.stage, row.status) for row in rows] == [
        ("one", "prepare", "done"),
        ("one", "train", "next"),
        ("one", "export", "waiting"),
        ("two", "prepare", "done"),
        ("two", "train", "running"),
        ("two", "export", "waiting"),
    ]
