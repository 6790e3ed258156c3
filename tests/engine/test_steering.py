from __future__ import annotations

import threading
import time

import pytest

from amigo_local.domain.errors import Cancelled
from amigo_local.engine.control import Command
from amigo_local.engine.steering import Steering


def waiting(steering: Steering) -> tuple[threading.Thread, list[str]]:
    """A thread in the middle of a pause, and how it ended."""
    ended: list[str] = []

    def work() -> None:
        try:
            steering.wait_while_paused()
            ended.append("went on")
        except Cancelled:
            ended.append("cancelled")

    thread = threading.Thread(target=work)
    thread.start()
    thread.join(0.05)
    assert thread.is_alive() and not ended
    return thread, ended


@pytest.mark.parametrize(
    ("command", "outcome"), [("continue", "went on"), ("stop", "went on"), ("cancel", "cancelled")]
)
def test_a_pause_lasts_until_another_command(command: Command, outcome: str) -> None:
    steering = Steering()
    steering.obey("pause")
    assert steering.standing() == ("pause",)
    thread, ended = waiting(steering)
    steering.obey(command)
    thread.join(5)
    assert ended == [outcome]
    assert steering.stop_asked() == (command == "stop")
    assert steering.standing() == (() if command == "continue" else (command,))


def test_what_is_to_stop_or_is_cancelled_cant_be_paused_any_more() -> None:
    for command in ("stop", "cancel"):
        steering = Steering()
        steering.obey(command)
        steering.obey("pause")
        assert not steering.paused and steering.standing() == (command,)


def test_its_clock_stands_still_while_the_work_waits_and_not_while_it_works_on() -> None:
    now = [100.0]
    steering = Steering(lambda: now[0])
    assert steering.seconds() == 100
    steering.obey("pause")
    now[0] = 103.0  # not at an event yet
    assert steering.seconds() == 103
    thread, _ = waiting(steering)
    now[0] = 163.0
    assert steering.seconds() == 103
    steering.obey("continue")
    thread.join(5)
    assert steering.seconds() == 103
    now[0] = 170.0
    assert steering.seconds() == 110


def test_a_wait_ends_at_once_when_it_is_cancelled() -> None:
    steering = Steering()
    threading.Timer(0.05, lambda: steering.obey("cancel")).start()
    started = time.monotonic()
    with pytest.raises(Cancelled):
        steering.wait_cancelled(30)
    assert time.monotonic() - started < 10
