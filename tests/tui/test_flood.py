"""A run that says 20,000 things a second: nothing is lost at its end, keys are answered, memory stays bounded."""

from __future__ import annotations

import re
import statistics
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.support.answered_keys import back_to_the_loop, palette_letters, prompt_letters, timed
from tests.support.command_line import SCRIPT, environment
from tests.support.flood import LAST_NOTE, begin, end_of, start_flood
from tests.support.pty_program import PtyProgram
from tests.support.terminal import Terminal

PER_SECOND = 20_000
COMMAND = [str(SCRIPT), "tui", "--screen", "loop"]
RUN_ID = "20260101-000000-flood"


class Flooded(NamedTuple):
    answers: list[float]
    """Seconds until a key was answered."""
    grown_bytes: int
    late_seconds: float
    """From the end of the flood until that is on the screen."""


def flooded(home: Path, seconds: int, letters: Callable[[PtyProgram], Iterator[float]]) -> Flooded:
    flood = start_flood(home, RUN_ID, PER_SECOND, seconds)
    with PtyProgram(COMMAND, (120, 40), environment(home)) as app:
        app.wait_for("running")
        typing = letters(app)
        timed(typing, 0.5)  # what it takes to get there
        before, after = app.rss_bytes, app.mark()
        begin(flood)
        answers = timed(typing, seconds - 0.3)
        back_to_the_loop(app)
        end = end_of(flood)
        assert end.records == PER_SECOND * seconds + 5
        shown = max(app.wait_for(text, after) for text in (LAST_NOTE, "finished in"))
        grown = app.rss_bytes - before
    return Flooded(answers, grown, shown - end.ended)


def test_a_flood_loses_nothing_of_its_end_and_keys_are_answered_meanwhile(tmp_path: Path) -> None:
    found = flooded(tmp_path, 2, palette_letters)
    # Loosely, since other tests run beside it; benchmarks/tui.py is for the figures.
    assert len(found.answers) >= 5 and statistics.median(found.answers) < 0.3
    assert found.grown_bytes < 60e6
    assert found.late_seconds < 10


@pytest.mark.slow
def test_ten_seconds_of_it_are_answered_as_soon_and_take_no_more_memory(tmp_path: Path) -> None:
    found = flooded(tmp_path, 10, prompt_letters)
    assert statistics.median(found.answers) < 0.05
    assert found.grown_bytes < 60e6
    assert found.late_seconds < 10


def test_resizing_in_the_middle_of_it_leaves_a_whole_screen_each_time(tmp_path: Path) -> None:
    flood = start_flood(tmp_path, RUN_ID, PER_SECOND, 2)
    with Terminal(COMMAND, (120, 40), environment(tmp_path)) as terminal:
        terminal.wait_for("running")
        begin(flood)
        for width, height in ((40, 10), (200, 60), (80, 24), (20, 4), (40, 10), (132, 43)):
            terminal.resize(width, height)
            terminal.wait_until(lambda lines: len(lines) == height and (height < 10 or "palette" in lines[-1]))  # noqa: B023
        end_of(flood)
        screen = terminal.wait_for(LAST_NOTE)
        assert len(screen.splitlines()) == 43 and "done" in screen
        terminal.resize(40, 10)
        terminal.wait_for(re.compile(r"\A.{0,40}\n(.*\n)*.*✓ train(.*\n)*.*palette"))
        terminal.keys("C-q")
        assert terminal.exit_code() == 0
