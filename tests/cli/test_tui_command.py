"""`amigo-local tui` and `amigo-local` alone: where they open the app, and what they say where they can't."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

from amigo_local.tui.screens.base import SCREENS
from tests.support.command_line import SCRIPT, amigo, environment
from tests.support.terminal import Terminal


def terminal_with(home: Path, *command: str) -> Terminal:
    return Terminal(command, (100, 30), environment(home))


def test_without_a_command_a_terminal_gets_the_app_and_is_left_as_it_was(tmp_path: Path) -> None:
    with terminal_with(tmp_path, str(SCRIPT)) as terminal:
        terminal.wait_for("Doctor")
        terminal.keys("C-q")
        assert terminal.exit_code() == 0
        assert not any(terminal.screen())
        terminal.text("echoed")  # twice, by the terminal and by cat, only if it works by whole lines again
        terminal.keys("Enter")
        terminal.wait_for(re.compile("echoed\nechoed"))


def test_without_a_command_a_pipe_gets_the_help(tmp_path: Path) -> None:
    done = amigo(tmp_path)
    assert done.returncode == 2
    assert re.search(r"^  tui +Open the app", done.stderr, re.MULTILINE)
    assert not (tmp_path / "cache").exists()


def test_a_dumb_terminal_gets_the_help_and_the_reason_when_it_asks_for_the_app(tmp_path: Path) -> None:
    with terminal_with(tmp_path, "env", "TERM=dumb", str(SCRIPT)) as terminal:
        assert terminal.exit_code() == 2
        terminal.wait_for("Exit codes: 0 done")
    with terminal_with(tmp_path, "env", "TERM=dumb", str(SCRIPT), "tui") as terminal:
        assert terminal.exit_code() == 2
        screen = terminal.wait_for("hint: ")
    assert "error: TERM=dumb: this terminal can't place its cursor" in screen and "--help" in screen


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["tui"], "the app needs a terminal, and stdout is none"),
        (["tui", "--port", "8000"], "--host and --port are of the browser's view"),
        (["tui", "--web", "--set", "train.steps=4"], "--set train.steps=4: a setting of a recipe"),
        (["tui", "--web", "--port", "70000"], "70000 is not in the range"),
        (["tui", "--web", "--host", "no.such.host.invalid"], "--host no.such.host.invalid: "),
        (["tui", "--web", "--screen", "nowhere"], "there is no screen 'nowhere'"),
    ],
)
def test_what_it_cant_do_is_said_in_a_sentence(tmp_path: Path, arguments: list[str], said: str) -> None:
    done = amigo(tmp_path, *arguments)
    assert done.returncode == 2 and said in done.stderr, done.stderr


def test_it_opens_at_the_screen_that_is_asked_for_and_help_names_them_all(tmp_path: Path) -> None:
    helped = " ".join(amigo(tmp_path, "tui", "--help").stdout.split())
    assert all(name in helped for name in SCREENS)
    with terminal_with(tmp_path, str(SCRIPT), "tui", "--screen", "nowhere") as terminal:
        assert terminal.exit_code() == 2
        terminal.wait_for("one of: loop, models, recipe")


def test_a_fault_of_the_app_ends_in_one_sentence_and_its_traceback_is_in_the_log(tmp_path: Path) -> None:
    broken = """
        from amigo_local.cli.main import main
        from amigo_local.tui.screens.loop import SCREEN
        def shown(self):
            raise RuntimeError("a fault")
        SCREEN.shown = shown
        main(["tui"])
    """
    with terminal_with(tmp_path, sys.executable, "-c", "if True:" + broken) as terminal:
        assert terminal.exit_code() == 1
        screen = terminal.wait_for("hint: ")
        log = tmp_path / "cache" / "tui.log"
        assert screen.splitlines()[0] == "error: the app failed; runs that it started go on"
        assert f"how it came about is in {log}" in screen.replace("\n", "") and "Traceback" not in screen
        assert "RuntimeError: a fault" in log.read_text()
        terminal.text("echoed")
        terminal.keys("Enter")
        terminal.wait_for(re.compile("echoed\nechoed"))


def test_a_home_that_cant_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with terminal_with(tmp_path, str(SCRIPT), "tui", "--home", str(tmp_path / "file")) as terminal:
        assert terminal.exit_code() == 2
        terminal.wait_for("can't write in the home folder")
