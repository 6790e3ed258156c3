from __future__ import annotations

from amigo_local.domain.artifact import Artifact
from amigo_local.domain.events import (
    AnyEvent,
    CheckpointSaved,
    MetricLogged,
    Note,
    Progress,
    Record,
    RunContinued,
    RunFinished,
    RunPaused,
    RunStarted,
    StageCancelled,
    StageFailed,
    StageFinished,
    StageSkipped,
    StageStarted,
    TokenGenerated,
)
from amigo_local.domain.run_state import LOG_RECORDS, RunState


def artifact(stage: str, mark: str) -> Artifact:
    return Artifact("dataset", f"/home/{stage}", "sha256:1", 1000, stage, mark, figures={"train_samples": 7})


def applied(*events: tuple[str, AnyEvent]) -> RunState:
    state = RunState()
    for seq, (stage, event) in enumerate(events):
        state.apply(Record("r1", seq, 100.0 + seq, stage, event))
    return state


def test_a_run_from_its_start_to_its_end() -> None:
    state = applied(
        ("run", RunStarted(verb="run", title="run demo")),
        ("pull", StageSkipped("f0", artifact("pull", "f0"))),
        ("train", StageStarted("f1", "Refine", 60.0, of="stage1")),
        ("train", Progress("training", 1, 10, "steps")),
        ("train", MetricLogged(1, {"loss": 2.0})),
        ("train", CheckpointSaved(1, "/c/1")),
        ("train", Progress("training", 10, 10, "steps")),
        ("train", MetricLogged(10, {"loss": 1.0, "eval_loss": 1.5})),
        ("train", StageFinished(artifact("train", "f1"), 5.0, 10, {"loss": 1.0})),
        ("run", RunFinished(0, 9.0)),
    )
    assert [(s.stage, s.of, s.status) for s in state.stages] == [("pull", "", "done"), ("train", "stage1", "done")]
    train = state.trainings[0]
    assert train.metrics["loss"].values == [2.0, 1.0]
    assert train.metrics["eval_loss"].steps == [10]
    assert train.progress == Progress("training", 10, 10, "steps")
    assert [saved.step for saved in train.checkpoints] == [1]
    assert (state.exit_code, state.elapsed_seconds, state.running) == (0, 9.0, None)


def test_a_stage_that_was_cut_and_resumed_is_one_stage_with_one_curve() -> None:
    state = applied(
        ("run", RunStarted(verb="run", title="t")),
        ("train", StageStarted("f1", "Refine")),
        ("train", MetricLogged(1, {"loss": 3.0})),
        ("train", MetricLogged(2, {"loss": 2.0})),
        # killed here: no word of its end
        ("run", RunStarted(verb="run", title="t", resumed=True)),
        ("train", StageStarted("f1", "Refine")),
        ("train", MetricLogged(2, {"loss": 2.5})),
    )
    assert len(state.stages) == 1
    assert state.stages[0].status == "running"
    assert state.stages[0].metrics["loss"].values == [3.0, 2.5]
    assert state.attempt == 2


def test_a_failure_is_that_of_the_newest_start() -> None:
    first = [
        ("run", RunStarted(verb="run", title="t")),
        ("export", StageStarted("f1", "Export")),
        ("export", StageFailed("the disk is full", "free some", 1)),
        ("run", RunFinished(1, 1.0)),
    ]
    assert (error := applied(*first).error) and error.message == "the disk is full"
    again = [
        ("run", RunStarted(verb="run", title="t", resumed=True)),
        ("export", StageStarted("f1", "Export")),
        ("export", StageFinished(artifact("export", "f1"), 1.0, 1)),
        ("run", RunFinished(0, 2.0)),
    ]
    state = applied(*first, *again)
    assert state.error is None
    assert [(s.stage, s.status, s.error) for s in state.stages] == [("export", "done", None)]


def test_records_that_are_known_already_change_nothing() -> None:
    records = [Record("r", 0, 1.0, "run", RunStarted(verb="run", title="t")), Record("r", 1, 2.0, "run", Note("hello"))]
    state = RunState()
    for record in [*records, *records]:
        state.apply(record)
    assert len(state.log) == 2
    assert state.attempt == 1


def test_pause_and_cancel_are_told() -> None:
    begun = (("run", RunStarted(verb="run", title="t")), ("train", StageStarted("f", "s")))
    assert applied(*begun, ("train", RunPaused())).paused
    assert not applied(*begun, ("train", RunPaused()), ("train", RunContinued())).paused
    ended = applied(*begun, ("train", RunPaused()), ("train", StageCancelled()), ("run", RunFinished(130, 1.0)))
    assert (ended.paused, ended.exit_code, ended.stages[0].status) == (False, 130, "cancelled")


def test_a_flood_of_records_takes_bounded_memory() -> None:
    state = RunState()
    state.apply(Record("r", 0, 0.0, "train", StageStarted("f", "s")))
    for seq in range(1, 60_001):
        kind = seq % 4
        event: AnyEvent = (
            Note("n")
            if kind == 0
            else MetricLogged(seq, {"loss": 1.0})
            if kind == 1
            else TokenGenerated(0, 0, "x")
            if kind == 2
            else Progress("p", seq, None, "steps")
        )
        state.apply(Record("r", seq, 0.0, "train", event))
    assert len(state.log) == LOG_RECORDS
    assert len(state.stages[0].metrics["loss"]) <= 4096
    assert state.stages[0].progress == Progress("p", 59_999, None, "steps")
    assert state.records == 60_001
