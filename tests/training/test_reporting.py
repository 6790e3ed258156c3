"""What a training says while it runs, told by a real transformers Trainer over a toy model."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import transformers

from amigo_local.domain.errors import AmigoError, Cancelled
from amigo_local.domain.events import (
    AnyEvent,
    CheckpointSaved,
    MetricLogged,
    Note,
    Progress,
    Record,
    decode_record,
    encode_record,
)
from amigo_local.training.pace import Pace
from amigo_local.training.reporting import EventReporter

TOKENS = [0, 10, 30, 60, 100, 150, 210]  # 10 more in every step
SAMPLES = [0, 4, 8, 12, 16, 20, 24]


class Toy(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = torch.nn.Linear(3, 1)

    def forward(self, x: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"loss": ((self.linear(x).squeeze(-1) - labels) ** 2).mean()}


class Clock:
    """Moves by a second each time it is read, or as it is told."""

    def __init__(self, step: float = 1.0) -> None:
        self.now, self.step = 0.0, step

    def __call__(self) -> float:
        self.now += self.step
        return self.now


class Told(list[AnyEvent]):
    def metrics(self, *names: str) -> list[MetricLogged]:
        return [e for e in self if isinstance(e, MetricLogged) and set(names) <= set(e.values)]


def reporter(emit: Callable[[AnyEvent], None], **given: Any) -> EventReporter:
    arguments = {
        "emit": emit,
        "tokens_by_step": TOKENS,
        "samples_by_step": SAMPLES,
        "log_every_steps": 1,
        "after_step": lambda: None,
        "save_now": lambda mid_step: None,
        "checkpoint_path": lambda step: f"checkpoint-{step}",
        "gauges": SimpleNamespace(read=dict),
        "clock": Clock(),
    }
    return EventReporter(**(arguments | given))


def trainer(folder: Path, report: EventReporter, *more: Any, **arguments: Any) -> transformers.Trainer:
    """Six steps of four rows; an evaluation of two batches and a checkpoint every third."""
    torch.manual_seed(0)
    rows = [{"x": [float(i), 1.0, -1.0], "labels": float(i % 3)} for i in range(24)]
    settings = {
        "max_steps": 6,
        "per_device_train_batch_size": 4,
        "per_device_eval_batch_size": 4,
        "learning_rate": 1e-3,
        "logging_steps": 1,
        "eval_strategy": "steps",
        "eval_steps": 3,
        "save_steps": 3,
        "report_to": "none",
        "disable_tqdm": True,
        "use_cpu": True,
        "label_names": ["labels"],
    }
    made = transformers.Trainer(
        Toy(),
        transformers.TrainingArguments(str(folder), **(settings | arguments)),
        train_dataset=rows,
        eval_dataset=rows[:8],
    )
    made.remove_callback(transformers.PrinterCallback)
    for callback in (report, *more):
        made.add_callback(callback)
    return made


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Told, transformers.Trainer]:
    told = Told()
    gauges = SimpleNamespace(read=lambda: {"ram_bytes": 5e8, "pcie_bytes_per_second": 1e10})
    report = reporter(told.append, gauges=gauges)
    made = trainer(tmp_path_factory.mktemp("toy"), report)
    made.train()
    return told, made


def test_each_step_tells_what_the_trainer_logs_and_what_the_gauges_read(run: tuple[Told, Any]) -> None:
    told, _ = run
    steps = told.metrics("loss")
    assert [event.step for event in steps] == [1, 2, 3, 4, 5, 6]
    for event in steps:
        assert set(event.values) == {
            *("loss", "learning_rate", "grad_norm"),
            *("seconds_per_step", "tokens_per_second", "samples_per_second", "eta_seconds"),
            *("ram_bytes", "pcie_bytes_per_second"),
        }
        seconds = event.values["seconds_per_step"]
        assert event.values["tokens_per_second"] == 10 * event.step / seconds
        assert event.values["samples_per_second"] == 4 / seconds
    assert steps[-1].values["eta_seconds"] == 0


def test_an_evaluation_is_told_at_its_step_and_its_time_belongs_to_no_step(run: tuple[Told, Any]) -> None:
    told, _ = run
    evaluations = told.metrics("eval_loss")
    assert [event.step for event in evaluations] == [3, 6]
    assert "loss" not in evaluations[0].values
    # The clock moves by one a reading, and is read several times in the evaluation and the checkpoint after step 3.
    assert told.metrics("loss")[3].values["seconds_per_step"] == 1
    batches = [event for event in told if isinstance(event, Progress) and event.label == "evaluating"]
    assert [(event.done, event.total) for event in batches] == [(1, 2), (2, 2)] * 2
    assert [event.step for event in told if isinstance(event, CheckpointSaved)] == [3, 6]


def test_the_saved_history_holds_only_what_a_second_run_repeats(run: tuple[Told, Any], tmp_path: Path) -> None:
    _, first = run
    second = trainer(tmp_path, reporter(Told().append, clock=Clock(0.37)))
    second.train()
    saved = [
        json.loads(Path(made.args.output_dir, "checkpoint-6", "trainer_state.json").read_text())["log_history"]
        for made in (first, second)
    ]
    assert saved[0] == saved[1]
    assert {frozenset(line) for line in saved[0]} == {
        frozenset({"step", "loss", "learning_rate", "grad_norm", "tokens"}),
        frozenset({"step", "eval_loss"}),
    }


def test_log_every_steps_thins_out_the_metrics_but_not_the_last(tmp_path: Path) -> None:
    told = Told()
    trainer(tmp_path, reporter(told.append, log_every_steps=4)).train()
    assert [event.step for event in told.metrics("loss")] == [4, 6]
    assert [event.step for event in told.metrics("eval_loss")] == [3, 6]


def test_cancelled_within_an_evaluation_the_step_before_it_is_saved_as_it_ended(tmp_path: Path) -> None:
    happened: list[str] = []

    def emit(event: AnyEvent) -> None:
        if isinstance(event, Progress) and event.label == "evaluating":
            raise Cancelled

    report = reporter(
        emit,
        after_step=lambda: happened.append("step ended"),
        save_now=lambda mid_step: happened.append(f"saved, mid step: {mid_step}"),
    )
    made = trainer(tmp_path, report)
    with pytest.raises(Cancelled):
        made.train()
    assert happened == ["step ended"] * 3 + ["saved, mid step: True"]
    assert made.state.global_step == 3


def state(step: int, **more: Any) -> Any:
    return SimpleNamespace(global_step=step, max_steps=6, log_history=[{}], **more)


def test_what_dpo_logs_besides_is_told_and_what_repeats_is_kept() -> None:
    told, at = Told(), state(1)
    logs = {"loss": 0.6, "rewards/margins": 0.25, "rewards/accuracies": 1.0, "logps/chosen": -9.0, "epoch": 0.5}
    reporter(told.append).on_log(None, at, None, logs={**logs, "num_tokens": 7.0, "entropy": 1.5})
    (event,) = told.metrics("loss")
    assert {"rewards/margins", "rewards/accuracies", "logps/chosen", "entropy"} <= set(event.values)
    assert not {"epoch", "num_tokens"} & set(event.values)
    assert set(at.log_history[-1]) == {"step", "tokens", *logs} - {"epoch"}


def test_a_number_that_is_not_finite_is_named_and_the_record_stays_readable() -> None:
    told = Told()
    reporter(told.append).on_log(None, state(1), None, logs={"loss": 0.5, "grad_norm": float("inf")})
    (event,) = told.metrics("loss")
    record = Record("run", 1, 0.0, "train", event)
    assert decode_record(encode_record(record)) == record
    assert Note("step 1: grad_norm no finite number, left out of the record", "warning") in told


@pytest.mark.parametrize(("loss", "word"), [(float("nan"), "NaN"), (float("inf"), "infinite")])
def test_a_loss_that_is_no_number_stops_the_run(loss: float, word: str) -> None:
    with pytest.raises(AmigoError, match=f"the loss became {word} at step 2") as caught:
        reporter(Told().append).on_log(None, state(2), None, logs={"loss": loss})
    assert "learning_rate" in caught.value.hint


def test_the_forecast_is_the_mean_of_late_steps_without_the_first() -> None:
    pace = Pace()
    pace.step(60.0)  # warming up
    assert pace.seconds_for(10) == 600
    for _ in range(3):
        pace.step(2.0)
    assert pace.seconds_for(10) == 20
    for _ in range(60):
        pace.step(4.0)  # the samples became longer
    assert pace.seconds_for(10) == pytest.approx(40, rel=0.01)


def test_one_step_in_which_the_laptop_slept_does_not_spoil_the_forecast() -> None:
    pace = Pace()
    for _ in range(30):
        pace.step(2.0)
    pace.step(8 * 3600.0)
    assert pace.seconds_for(100) == pytest.approx(260)  # one of ten parts counts four times


def test_pauses_to_come_are_part_of_the_forecast_as_often_as_they_were() -> None:
    pace = Pace()
    for _ in range(10):
        pace.step(2.0)
    pace.pause(30.0)  # an evaluation every tenth step
    assert pace.seconds_for(20) == 20 * 2 + 2 * 30
