"""A training that is told to stop, or that waits, while a person does something else with the machine."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from amigo_local.domain.errors import Cancelled
from amigo_local.domain.events import AnyEvent, CheckpointSaved, MetricLogged, Note, Progress
from amigo_local.engine.steering import Steering
from amigo_local.training.frozen_base import base_from_checkpoint
from amigo_local.training.sft import train_sft
from amigo_local.training.training_run import TrainingRun

from .conftest import PLAN, SETTINGS, STEPS, Train, files


def test_a_training_that_is_stopped_saves_the_step_at_hand_and_goes_on_to_the_same_bytes(
    train: Train, tiny_base: Path, tiny_dataset: Path, uninterrupted: Path, tmp_path: Path
) -> None:
    told: list[AnyEvent] = []
    asked = False

    def emit(event: AnyEvent) -> None:
        nonlocal asked
        told.append(event)
        asked = asked or (isinstance(event, Progress) and event.done == 4)  # a checkpoint is due after 3 and after 6

    base = base_from_checkpoint(tiny_base, SETTINGS, name="tiny")
    run = TrainingRun(SETTINGS, PLAN, base, tiny_dataset, tmp_path, emit, stop_asked=lambda: asked)
    with pytest.raises(Cancelled):
        train_sft(run)
    assert [event.step for event in told if isinstance(event, CheckpointSaved)] == [3, 5]
    assert [event.step for event in told if isinstance(event, MetricLogged)][-1] == 5
    assert isinstance(told[-1], CheckpointSaved)
    _, events = train(tmp_path)
    assert f"resuming after step 5 of {STEPS}" in [event.text for event in events if isinstance(event, Note)]
    assert files(tmp_path) == files(uninterrupted)


def test_asked_to_stop_after_its_last_step_a_training_just_ends_and_a_pause_counts_into_no_speed(
    tiny_base: Path, tiny_dataset: Path, uninterrupted: Path, tmp_path: Path
) -> None:
    told: list[AnyEvent] = []
    now = [0.0]
    steering = Steering(lambda: now[0])

    def emit(event: AnyEvent) -> None:
        told.append(event)
        now[0] += 1.0  # whatever a step does takes as long as its events
        if not isinstance(event, MetricLogged):
            return
        if event.step == 4:
            steering.obey("pause")
            threading.Timer(0.1, an_hour_later).start()
            steering.wait_while_paused()
        elif event.step == STEPS:
            steering.obey("stop")

    def an_hour_later() -> None:
        now[0] += 3600
        steering.obey("continue")

    base = base_from_checkpoint(tiny_base, SETTINGS, name="tiny")
    run = TrainingRun(
        SETTINGS, PLAN, base, tiny_dataset, tmp_path, emit, clock=steering.seconds, stop_asked=steering.stop_asked
    )
    figures = train_sft(run)
    assert now[0] > 3600 and steering.stop_asked()
    steps = [event.values for event in told if isinstance(event, MetricLogged)]
    assert len(steps) == STEPS and max(step["seconds_per_step"] for step in steps) < 10
    assert max(step["eta_seconds"] for step in steps) < 100
    assert isinstance(figures["seconds_training"], float) and figures["seconds_training"] < 100
    assert files(tmp_path) == files(uninterrupted)
