"""Killed or cancelled anywhere, training ends with the bytes of a run that nothing stopped."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from amigo_local.domain.errors import Cancelled
from amigo_local.domain.events import AnyEvent, CheckpointSaved, MetricLogged, Note, Progress
from amigo_local.domain.memory_plan import MemoryPlan
from amigo_local.domain.recipe import TrainSettings
from amigo_local.training.frozen_base import base_from_checkpoint
from amigo_local.training.sft import train_sft
from amigo_local.training.training_run import TrainingRun

from .conftest import PLAN, SETTINGS, STEPS, Train, files


def test_the_same_run_twice_gives_the_same_bytes(train: Train, uninterrupted: Path, tmp_path: Path) -> None:
    train(tmp_path)
    assert files(tmp_path) == files(uninterrupted)
    assert sorted(files(tmp_path)) == ["adapter_config.json", "adapter_model.safetensors", "training_log.jsonl"]


# Held-out samples are measured every other step, the best adapter is kept, and it goes on from another one.
EVERYTHING = msgspec.structs.replace(SETTINGS, evaluate_every_steps=2, keep_best=True, neftune_noise_alpha=5.0)
PADDED = msgspec.structs.replace(SETTINGS, packing=False)
EIGHT_BIT = msgspec.structs.replace(PLAN, optimizer="paged_adamw_8bit")


@pytest.mark.parametrize(
    ("settings", "plan", "start"),
    [
        pytest.param(EVERYTHING, PLAN, True, id="everything"),
        pytest.param(SETTINGS, PLAN, False, id="plain", marks=pytest.mark.slow),
        pytest.param(PADDED, PLAN, False, id="padded", marks=pytest.mark.slow),
        pytest.param(SETTINGS, EIGHT_BIT, False, id="8-bit optimizer", marks=pytest.mark.slow),
    ],
)
def test_killed_at_random_instants_it_repeats_the_same_losses_and_bytes(
    settings: TrainSettings,
    plan: MemoryPlan,
    start: bool,
    train: Train,
    tiny_base: Path,
    tiny_dataset: Path,
    uninterrupted: Path,
    tmp_path: Path,
) -> None:
    start_adapter = uninterrupted if start else None
    train(tmp_path / "expected", settings, plan, start_adapter=start_adapter)
    seed = int.from_bytes(os.urandom(4), "big")
    # Three steps at least are left after a kill is due, so that no child is done before it comes.
    kills = sorted(random.Random(seed).sample(range(1, STEPS - 2), 2))
    request = {
        "settings": msgspec.to_builtins(settings),
        "plan": msgspec.to_builtins(plan),
        "base": str(tiny_base),
        "dataset": str(tiny_dataset),
        "start_adapter": start_adapter and str(start_adapter),
        "out": str(tmp_path / "out"),
        "trail": str(tmp_path / "trail.jsonl"),
        "kill_after": kills,
        "step_seconds": 0.03,
        "seed": seed,
    }
    (tmp_path / "request.json").write_text(json.dumps(request))
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run(
        [sys.executable, str(Path(__file__).with_name("forked_training.py")), str(tmp_path / "request.json")],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(root)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, f"seed {seed}: {done.stderr[-2000:]}"
    assert done.stdout == ""  # nothing prints

    log = [json.loads(line) for line in (tmp_path / "expected" / "training_log.jsonl").read_text().splitlines()]
    expected = {line["step"]: line["loss"] for line in log if "loss" in line}
    assert len(expected) == STEPS
    trail = [json.loads(line) for line in (tmp_path / "trail.jsonl").read_text().splitlines()]
    assert {child for child, _, _ in trail} == {0, 1, 2}
    for child, step, loss in trail:
        assert loss == expected[step], f"child {child} at step {step}, killed after {kills}, seed {seed}"
    # It resumed: the last child starts after the newest checkpoint that a kill can have left.
    assert min(step for child, step, _ in trail if child == 2) >= kills[-1] // 3 * 3 - 2
    assert files(tmp_path / "out") == files(tmp_path / "expected"), f"killed after {kills}, seed {seed}"


def interrupted(
    out_dir: Path,
    base: Path,
    dataset: Path,
    stop: type[AnyEvent],
    nth: int,
    clock_step: float = 0.0,
    settings: TrainSettings = SETTINGS,
) -> list[AnyEvent]:
    """Cancels at the nth event of a kind; clock_step makes the clock jump, so that sub-steps are told."""
    events: list[AnyEvent] = []
    now = 0.0

    def clock() -> float:
        nonlocal now
        now += clock_step
        return now

    def emit(event: AnyEvent) -> None:
        events.append(event)
        if sum(isinstance(e, stop) for e in events) == nth:
            raise Cancelled

    with pytest.raises(Cancelled):
        train_sft(
            TrainingRun(
                settings, PLAN, base_from_checkpoint(base, settings, "tiny"), dataset, out_dir, emit, clock=clock
            )
        )
    return events


@pytest.mark.parametrize(
    ("stop", "nth", "clock_step", "saved_step"),
    [
        (MetricLogged, 4, 0.0, 4),  # right after a step that is no multiple of 3
        (Progress, 12, 2.0, 5),  # in the middle of step 6: 1 at the start, then 2 a step
        (CheckpointSaved, 2, 0.0, 6),
    ],
)
def test_cancelling_saves_the_last_finished_step_and_resuming_changes_nothing(
    stop: type[AnyEvent],
    nth: int,
    clock_step: float,
    saved_step: int,
    train: Train,
    tiny_base: Path,
    tiny_dataset: Path,
    uninterrupted: Path,
    tmp_path: Path,
) -> None:
    events = interrupted(tmp_path, tiny_base, tiny_dataset, stop, nth, clock_step)
    if clock_step:
        assert isinstance(events[-1], Progress)
        assert events[-1].done == 5.5
    assert sorted(files(tmp_path))[0].startswith("checkpoints/")  # nothing under a final name
    assert (tmp_path / "checkpoints" / f"checkpoint-{saved_step}").is_dir()

    figures, events = train(tmp_path)
    assert figures["resumed_after_step"] == saved_step
    assert Note(f"resuming after step {saved_step} of {STEPS}") in events
    assert [e.step for e in events if isinstance(e, MetricLogged)] == list(range(saved_step + 1, STEPS + 1))
    assert files(tmp_path) == files(uninterrupted)


def test_a_torn_checkpoint_is_passed_over_and_cleared(
    train: Train, tiny_base: Path, tiny_dataset: Path, uninterrupted: Path, tmp_path: Path
) -> None:
    interrupted(tmp_path, tiny_base, tiny_dataset, MetricLogged, 8)
    folder = tmp_path / "checkpoints"
    assert sorted(path.name for path in folder.iterdir()) == ["checkpoint-6", "checkpoint-8", "identity.json"]
    os.truncate(folder / "checkpoint-8" / "optimizer.pt", 100)
    (folder / "checkpoint-9.partial").mkdir()
    figures, _ = train(tmp_path)
    assert figures["resumed_after_step"] == 6
    assert files(tmp_path) == files(uninterrupted)


def test_checkpoints_of_other_settings_are_not_continued(
    train: Train, tiny_base: Path, tiny_dataset: Path, tmp_path: Path
) -> None:
    interrupted(tmp_path, tiny_base, tiny_dataset, MetricLogged, 4)
    other = msgspec.structs.replace(SETTINGS, learning_rate=1e-3, max_steps=2)
    figures, events = train(tmp_path, other)
    assert figures["resumed_after_step"] is None
    assert figures["steps"] == 2
    assert any(isinstance(e, Note) and e.level == "warning" and "start" in e.text for e in events)
