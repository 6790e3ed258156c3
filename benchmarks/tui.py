"""The app on a pseudo-terminal: time to its first screen beside other Textual programs, and how soon keys are answered
and how much memory is held, at rest and while a run writes 20,000 records a second.

`python benchmarks/tui.py [--runs N] [--seconds N] [--peer NAME MARKER COMMAND]`; a peer's first screen is there when
MARKER was drawn, e.g. `--peer harlequin Quit /path/to/harlequin`.
"""

from __future__ import annotations

import argparse
import os
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).parents[1]))
from benchmarks.measuring import megabytes
from tests.support.answered_keys import (
    back_to_the_loop,
    first_visits,
    palette_letters,
    prompt_letters,
    screens,
    timed,
)
from tests.support.command_line import SCRIPT, environment
from tests.support.flood import LAST_NOTE, begin, end_of, start_flood
from tests.support.pty_program import PtyProgram

SIZE = (120, 40)
FIRST_PAINT_SECONDS, KEY_SECONDS = 0.7, 0.05
"""What we want."""
PER_SECOND = 20_000
HELLO = """
from textual.app import App
from textual.widgets import Label
class Hello(App):
    def compose(self):
        yield Label("hello world")
Hello().run()
"""


class Program(NamedTuple):
    command: list[str]
    marker: str
    """Drawn with the last part of the first screen; empty: the end of the program counts."""


def first_paints(programs: dict[str, Program], home: Path, runs: int) -> dict[str, list[float]]:
    """Seconds from exec, in turn, so that a drifting machine touches all alike. The first round fills caches."""
    taken: dict[str, list[float]] = {name: [] for name in programs}
    for i in range(runs + 1):
        for name, program in programs.items():
            seconds = _first_paint(program, home)
            taken[name] += [seconds] if i else []
    return taken


def _first_paint(program: Program, home: Path) -> float:
    if not program.marker:
        started = time.perf_counter()
        subprocess.run(program.command, check=True, capture_output=True)
        return time.perf_counter() - started
    with PtyProgram(program.command, SIZE, environment(home)) as app:
        return app.wait_for(program.marker) - app.started


def show_first_paints(taken: dict[str, list[float]]) -> None:
    print(f"\n| first screen of {SIZE[0]}x{SIZE[1]} | median s | min | max |\n|---|---|---|---|")
    for name, values in taken.items():
        print(f"| {name} | {statistics.median(values):.2f} | {min(values):.2f} | {max(values):.2f} |")


def show_keys(taken: dict[str, list[float]]) -> None:
    print("\n| key until it is drawn | keys | median ms | 95 % under | max |\n|---|---|---|---|---|")
    for name, values in taken.items():
        ms = sorted(1000 * value for value in values)
        percentile = ms[min(len(ms) - 1, int(0.95 * len(ms)))]
        print(f"| {name} | {len(ms)} | {statistics.median(ms):.0f} | {percentile:.0f} | {ms[-1]:.0f} |")


def measure_first_visits(home: Path) -> list[float]:
    with PtyProgram([str(SCRIPT), "tui", "--screen", "loop"], SIZE, environment(home)) as app:
        app.wait_for("Disk")
        time.sleep(2)  # the screens' modules are read meanwhile
        return first_visits(app)


def measure_flood(home: Path, seconds: float) -> tuple[dict[str, list[float]], list[str]]:
    """Key times by name, and sentences about the rest."""
    taken, facts = {}, []
    flood = start_flood(home, "20260101-000000-flood", PER_SECOND, seconds)
    with PtyProgram([str(SCRIPT), "tui", "--screen", "loop"], SIZE, environment(home)) as app:
        app.wait_for("Disk")
        time.sleep(1)  # its first questions are answered
        rest = seconds / 5  # three times in a flood, with the ways between
        taken["another screen, at rest"] = timed(screens(app), rest)
        taken["letter in the prompt, at rest"] = timed(prompt_letters(app), rest)
        back_to_the_loop(app)
        typing = palette_letters(app)
        taken["letter in the palette, at rest"] = timed(typing, rest)
        before, cpu, after = app.rss_bytes, app.cpu_seconds, app.mark()
        begin(flood)
        flooded = time.perf_counter()
        taken["letter in the palette, flooded"] = timed(typing, rest)
        back_to_the_loop(app)
        during = app.rss_bytes
        taken["letter in the prompt, flooded"] = timed(prompt_letters(app), rest)
        back_to_the_loop(app)
        left = flooded + seconds - time.perf_counter() - 0.5
        taken["another screen, flooded"] = timed(screens(app), max(1.0, left))
        end = end_of(flood)
        shown = app.wait_for(LAST_NOTE, after)
        facts.append(f"{end.records:,} records in {end.seconds:.1f} s ({end.records / end.seconds:,.0f} a second)")
        facts.append(f"the last one on the screen {1000 * (shown - end.ended):.0f} ms after it was written")
        facts.append(
            f"RSS {megabytes(before)} at rest, {megabytes(during)} half-way, {megabytes(app.rss_bytes)} after it"
        )
        facts.append(f"{(app.cpu_seconds - cpu) / (time.perf_counter() - flooded):.0%} of a core")
    return taken, facts


def main() -> None:
    arguments = argparse.ArgumentParser()
    arguments.add_argument("--runs", type=int, default=11)
    arguments.add_argument("--seconds", type=float, default=10.0)
    arguments.add_argument("--peer", nargs=3, action="append", default=[], metavar=("NAME", "MARKER", "COMMAND"))
    given = arguments.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        programs = {
            "amigo-local": Program([str(SCRIPT), "tui", "--screen", "loop"], "Quit"),
            "Textual, hello world": Program([sys.executable, "-c", HELLO], "hello world"),
            "python -c 'import textual.app' (to its end)": Program([sys.executable, "-c", "import textual.app"], ""),
        }
        programs |= {name: Program(shlex.split(command), marker) for name, marker, command in given.peer}
        paints = first_paints(programs, Path(folder), given.runs)
        show_first_paints(paints)
    with tempfile.TemporaryDirectory() as folder:
        visits = measure_first_visits(Path(folder))
    with tempfile.TemporaryDirectory() as folder:
        taken, facts = measure_flood(Path(folder), given.seconds)
        taken = {"another screen, for the first time": visits, **taken}
        show_keys(taken)
        print("", *(f"- {fact}" for fact in facts), sep="\n")
    print(f"- targets: first screen {FIRST_PAINT_SECONDS} s, keys {1000 * KEY_SECONDS:.0f} ms; {os.cpu_count()} cores")


if __name__ == "__main__":
    main()
