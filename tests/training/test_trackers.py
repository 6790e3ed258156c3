"""Trackers are told what the recipe says, and nothing of ours imports one, or is sent, unless it says so."""

from __future__ import annotations

import os
import socket
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from amigo_local.domain.errors import InputError
from amigo_local.training.trackers import check_trackers, tracker_callbacks

from .conftest import Train
from .test_reporting import Told, reporter, trainer

# Stands in for a tracker: leaves a trace when it is imported, and writes down what TensorBoard would be told.
STAND_IN = """
from pathlib import Path
here = Path(__file__).parent
(here / "imported").touch()
class SummaryWriter:
    def __init__(self, log_dir): self.lines = (here / "told").open("a"); self.lines.write(f"folder {log_dir}\\n")
    def add_text(self, name, text): pass
    def add_scalar(self, name, value, step): self.lines.write(f"{step} {name} {value}\\n")
    def flush(self): self.lines.flush()
    def close(self): self.lines.close()
"""


@pytest.fixture
def stand_ins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Trackers as importable as if they were installed. TRL's own modules import a wandb that they find, asked for or
    not (trl/trainer/base_trainer.py), so they are loaded before."""
    import_module("trl.trainer.sft_trainer")
    folder = tmp_path / "stand-ins"
    for name in ("trackio", "tensorboardX", "wandb"):
        (folder / name).mkdir(parents=True)
        (folder / name / "__init__.py").write_text(STAND_IN)
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.delenv("TENSORBOARD_LOGGING_DIR", raising=False)
    yield folder  # type: ignore[misc]
    for name in ("trackio", "tensorboardX", "wandb"):
        sys.modules.pop(name, None)


def imported(folder: Path) -> list[str]:
    return sorted(path.parent.name for path in folder.rglob("imported"))


def test_a_training_that_names_no_tracker_imports_none_and_opens_no_connection(
    train: Train, stand_ins: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[object] = []  # recorded rather than raised: telemetry is sent from a thread that swallows errors

    def refuse(*arguments: object, **more: object) -> None:
        asked.append(arguments)
        raise OSError("no network in this test")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.delenv("CI", raising=False)  # where it is set, TRL sends nothing anyway
    train(tmp_path / "out")
    assert imported(stand_ins) == []
    assert asked == []
    assert os.environ["HF_HUB_DISABLE_TELEMETRY"] == "1"


def test_none_asked_for_none_made(stand_ins: Path, tmp_path: Path) -> None:
    assert tracker_callbacks((), tmp_path) == []
    assert imported(stand_ins) == []


def test_those_asked_for_are_made_in_transformers_own_form(stand_ins: Path, tmp_path: Path) -> None:
    callbacks = tracker_callbacks(("trackio", "tensorboard"), tmp_path)
    assert [type(callback).__name__ for callback in callbacks] == ["TrackioCallback", "TensorBoardCallback"]
    assert imported(stand_ins) == ["tensorboardX", "trackio"]


def test_a_tracker_is_told_the_metrics_that_we_add(stand_ins: Path, tmp_path: Path) -> None:
    told = Told()
    trainer(tmp_path / "out", reporter(told.append), *tracker_callbacks(("tensorboard",), tmp_path)).train()
    lines = (stand_ins / "tensorboardX" / "told").read_text().splitlines()
    assert lines[0] == f"folder {tmp_path / 'tensorboard'}"
    for event in told.metrics("loss"):
        for name in ("loss", "tokens_per_second", "eta_seconds"):
            assert f"{event.step} train/{name} {event.values[name]}" in lines
    assert f"3 eval/loss {told.metrics('eval_loss')[0].values['eval_loss']}" in lines


@pytest.mark.parametrize("name", ["trackio", "tensorboard", "wandb"])
def test_a_tracker_that_is_not_installed_is_refused_with_the_command_that_installs_it(name: Any) -> None:
    with pytest.raises(InputError, match=f"train.report_to names {name}, which is not installed") as caught:
        check_trackers((name,))
    assert caught.value.hint.startswith(f"pip install -c constraints.txt {name}")
