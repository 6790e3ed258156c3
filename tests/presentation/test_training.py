"""What is said about a training."""

from __future__ import annotations

from amigo_local.domain.events import (
    AnyEvent,
    CheckpointSaved,
    MetricLogged,
    Progress,
    Record,
    RunPaused,
    RunStarted,
    StageFailed,
    StageFinished,
    StageStarted,
)
from amigo_local.domain.run_state import RunState, StageState
from amigo_local.presentation.training import checkpoint_steps, standing, training_facts

GIB = 1 << 30
TOLD: list[AnyEvent] = [
    RunStarted(verb="train", title="train x"),
    StageStarted("f", "Refine", estimate_seconds=7200),
    Progress("training", 30, 600, "steps"),
]


def after(*events: AnyEvent) -> tuple[StageState, RunState]:
    run = RunState()
    for seq, event in enumerate([*TOLD, *events]):
        run.apply(Record("r", seq, float(seq), "train", event))
    return run.trainings[-1], run


def test_where_it_is() -> None:
    stage, run = after()
    now = standing(stage, run, live=True)
    assert (now.status, now.text, now.share, now.remaining) == (
        "running", "30 of 600 steps", 0.05, "2 h 00 min to go",
    )  # fmt: skip
    stage, run = after(MetricLogged(31, {"loss": 1.0, "eta_seconds": 65.0}), Progress("evaluating", 3, None, "batches"))
    now = standing(stage, run, live=True)
    assert (now.text, now.share, now.remaining) == ("evaluating 3 batches", None, "1 min 05 s to go")


def test_a_pause_a_cut_a_failure_and_the_end() -> None:
    stage, run = after(RunPaused())
    assert standing(stage, run, live=True).status == "paused"
    assert standing(stage, run, live=True).remaining == "2 h 00 min more when it goes on"
    cut = standing(stage, run, live=False)
    assert (cut.status, cut.remaining) == ("cancelled", ""), "its process is gone"
    assert standing(*after(StageFailed("no", "try", 1)), live=True).status == "failed"
    done = standing(*after(StageFinished(None, 185.0, GIB)), live=False)
    assert (done.status, done.share, done.remaining) == ("done", 1.0, "took 3 min 05 s")


def test_figures_as_far_as_they_are_known() -> None:
    assert training_facts(after()[0]) == []
    stage, _ = after(
        MetricLogged(1, {"loss": 2.0, "learning_rate": 1e-4, "tokens_per_second": 1234.4, "seconds_per_step": 78.0}),
        MetricLogged(1, {"eval_loss": 1.5}),
        MetricLogged(2, {"loss": 1.25, "vram_bytes": 5.1 * GIB, "vram_peak_bytes": 5.4 * GIB}),
        MetricLogged(2, {"eval_loss": 1.75, "rewards/accuracies": 0.8, "eval_rewards/accuracies": 0.75}),
        MetricLogged(3, {"pcie_bytes_per_second": 12.5 * GIB, "copies_hidden": 0.97}),
        CheckpointSaved(2, "/c"),
    )
    assert training_facts(stage) == [
        ("loss", "2.000 → 1.250"),
        ("evaluation", "1.750, lowest 1.500 at 1"),
        ("preferred", "80 %, held out 75 %"),
        ("speed", "1,234 tok/s"),
        ("a step", "1 min 18 s"),
        ("lr", "1.0e-04"),
        ("VRAM", "5.1 GiB, peak 5.4 GiB"),
        ("copies", "12.5 GiB/s, 97 % hidden"),
        ("checkpoints", "2"),
    ]


def test_the_newest_checkpoints_are_named_each_once() -> None:
    stage, _ = after(*(CheckpointSaved(step, "/c") for step in (50, 100, 100, 150, 1200)))
    assert checkpoint_steps(stage, most=9) == "50, 100, 150, 1,200"
    assert checkpoint_steps(stage, most=2) == "… 150, 1,200"
