from __future__ import annotations

import threading
from pathlib import Path

import pytest

from amigo_local.engine.control import CONTROL_NAME, Command, obeying, send_command, take_command


def test_a_command_is_taken_once_and_leaves_nothing_behind(tmp_path: Path) -> None:
    assert take_command(tmp_path) is None
    send_command(tmp_path, "pause")
    assert take_command(tmp_path) == "pause"
    assert take_command(tmp_path) is None
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("first", "second", "taken"),
    [
        ("pause", "continue", "continue"),
        ("pause", "stop", "stop"),
        ("stop", "cancel", "cancel"),
        ("cancel", "pause", "cancel"),
        ("cancel", "stop", "cancel"),
        ("stop", "continue", "stop"),
    ],
)
def test_of_two_commands_before_a_poll_the_newer_counts_unless_the_older_ends_more(
    tmp_path: Path, first: Command, second: Command, taken: Command
) -> None:
    send_command(tmp_path, first)
    send_command(tmp_path, second)
    assert take_command(tmp_path) == taken


def test_a_word_that_is_no_command_is_removed_and_nothing_is_done(tmp_path: Path) -> None:
    (tmp_path / CONTROL_NAME).write_bytes(b"explode\xff")
    assert take_command(tmp_path) is None
    assert not (tmp_path / CONTROL_NAME).exists()


def test_commands_reach_the_owner_in_order_and_one_from_before_does_not(tmp_path: Path) -> None:
    send_command(tmp_path, "cancel")
    heard: list[Command] = []
    came = threading.Event()

    def hear(command: Command) -> None:
        heard.append(command)
        came.set()

    with obeying(tmp_path, hear, every_seconds=0.01):
        for command in ("pause", "continue", "cancel"):
            came.clear()
            send_command(tmp_path, command)
            assert came.wait(5)
    assert heard == ["pause", "continue", "cancel"]
    send_command(tmp_path, "stop")
    assert not came.wait(0.05) or heard[-1] == "cancel"
    assert take_command(tmp_path) == "stop", "the owner has let go"
