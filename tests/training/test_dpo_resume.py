"""DPO that is cut anywhere goes on with the reference it began with, and ends with the same bytes."""

from __future__ import annotations

import json
import math
import os
import random
import shutil
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from amigo_local.domain.errors import Cancelled
from amigo_local.domain.events import AnyEvent, MetricLogged, Progress
from amigo_local.domain.recipe import LoraSettings
from amigo_local.training.reference import LABEL
from tests.support.tiny_preferences import PLAN, TinyDpo, changed, log_of

from .conftest import files

# Ten steps; dropout, so that random numbers are drawn.
LORA = LoraSettings(rank=4, alpha=8)
SETTINGS = changed(epochs=4, keep_best=True, lora=msgspec.structs.replace(LORA, dropout=0.1))
STEPS = 10


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> TinyDpo:
    return TinyDpo(tmp_path_factory.mktemp("dpo"))


@pytest.fixture(scope="module")
def uninterrupted(tiny: TinyDpo, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out_dir = tmp_path_factory.mktemp("uninterrupted")
    tiny.train(out_dir, SETTINGS)
    return out_dir


class CancelAt:
    """Cancels at the nth event for which `due` holds."""

    def __init__(self, due: type[AnyEvent], nth: int, label: str = "") -> None:
        self._due, self._left, self._label = due, nth, label

    def __call__(self, event: AnyEvent) -> None:
        if isinstance(event, self._due) and (not self._label or getattr(event, "label", "") == self._label):
            self._left -= 1
            if self._left == 0:
                raise Cancelled


class Clock:
    """Jumps, so that progress is always due."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        self.now += 2.0
        return self.now


@pytest.fixture(scope="module")
def interrupted(tiny: TinyDpo, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output of a run that was cancelled after five steps and two evaluations."""
    out_dir = tmp_path_factory.mktemp("interrupted")
    with pytest.raises(Cancelled):
        tiny.train(out_dir, SETTINGS, emit=CancelAt(MetricLogged, 7))
    return out_dir


def test_cancelled_while_it_trains_it_goes_on_without_scoring_the_reference_again(
    tiny: TinyDpo, uninterrupted: Path, interrupted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*args: object) -> None:
        raise AssertionError("it was scored before")

    monkeypatch.setattr("amigo_local.training.preference_trainer.PreferenceTrainer.reference_of", never)
    out_dir = shutil.copytree(interrupted, tmp_path / "out")
    assert tiny.train(out_dir, SETTINGS)["resumed_after_step"] == 5
    assert files(out_dir) == files(uninterrupted)


def test_a_lost_reference_is_scored_with_the_start_adapter_not_with_the_resumed_one(
    tiny: TinyDpo, uninterrupted: Path, interrupted: Path, tmp_path: Path
) -> None:
    out_dir = shutil.copytree(interrupted, tmp_path / "out")
    for name in ("reference-train.bin", "reference-held_out.bin"):
        (out_dir / "checkpoints" / name).unlink()
    assert tiny.train(out_dir, SETTINGS)["resumed_after_step"] == 5
    assert files(out_dir) == files(uninterrupted)


def test_cancelled_while_it_scores_it_scores_only_the_rest(tiny: TinyDpo, uninterrupted: Path, tmp_path: Path) -> None:
    with pytest.raises(Cancelled):
        tiny.train(tmp_path, SETTINGS, emit=CancelAt(Progress, 4, LABEL), clock=Clock())
    assert [path.name for path in (tmp_path / "checkpoints").glob("reference-*")] == ["reference-train.bin.partial"]
    told: list[float] = []

    def emit(event: AnyEvent) -> None:
        if isinstance(event, Progress) and event.label == LABEL:
            told.append(event.done)

    tiny.train(tmp_path, SETTINGS, emit=emit, clock=Clock())
    assert told[0] > 4  # a step was there already
    assert files(tmp_path) == files(uninterrupted)


def test_another_start_adapter_starts_over_with_its_own_reference(
    tiny: TinyDpo, interrupted: Path, tmp_path: Path
) -> None:
    out_dir = shutil.copytree(interrupted, tmp_path / "out")
    one = msgspec.structs.replace(SETTINGS, max_steps=1, evaluate_every_steps=None, keep_best=False, lora=LORA)
    assert tiny.train(out_dir, one, start=False)["resumed_after_step"] is None
    assert log_of(out_dir)[0]["loss"] == pytest.approx(math.log(2), abs=1e-7)


# forked_training.py trains with sft.train_sft as it finds it when a child begins.
_FORKED_DPO = (
    "import sys; from amigo_local.training import dpo, sft; sft.train_sft = dpo.train_dpo; "
    "from tests.training import forked_training; forked_training.main(sys.argv[1])"
)


@pytest.mark.slow
def test_killed_at_random_instants_it_repeats_the_same_losses_and_bytes(
    tiny: TinyDpo, uninterrupted: Path, tmp_path: Path
) -> None:
    seed = int.from_bytes(os.urandom(4), "big")
    kills = sorted(random.Random(seed).sample(range(1, STEPS - 2), 2))
    request = {
        "settings": msgspec.to_builtins(SETTINGS),
        "plan": msgspec.to_builtins(PLAN),
        "base": str(tiny.base),
        "dataset": str(tiny.dataset),
        "start_adapter": str(tiny.adapter),
        "out": str(tmp_path / "out"),
        "trail": str(tmp_path / "trail.jsonl"),
        "kill_after": kills,
        "step_seconds": 0.06,
        "seed": seed,
    }
    (tmp_path / "request.json").write_text(json.dumps(request))
    done = subprocess.run(
        [sys.executable, "-c", _FORKED_DPO, str(tmp_path / "request.json")],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).resolve().parents[2])},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, f"seed {seed}: {done.stderr[-2000:]}"
    expected = {line["step"]: line["loss"] for line in log_of(uninterrupted) if "loss" in line}
    trail = [json.loads(line) for line in (tmp_path / "trail.jsonl").read_text().splitlines()]
    assert {child for child, _, _ in trail} == {0, 1, 2} and len(expected) == STEPS
    for child, step, loss in trail:
        assert loss == expected[step], f"child {child} at step {step}, killed after {kills}, seed {seed}"
    assert files(tmp_path / "out") == files(uninterrupted), f"killed after {kills}, seed {seed}"
