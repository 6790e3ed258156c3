"""The Runs screen on real runs: cut, resumed, steered, cleaned up."""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path

import psutil
import pytest

from amigo_local.tui.app import AmigoApp
from amigo_local.tui.screens.cleaning import Cleaning
from amigo_local.tui.screens.runs import RunsScreen
from tests.support.tiny_run import write_tiny_run
from tests.support.tui_driving import driven, screen_text, until


def runs_screen(app: AmigoApp) -> RunsScreen:
    assert isinstance(app.screen, RunsScreen)
    return app.screen


def test_an_empty_home_says_what_to_do_first(tmp_path: Path) -> None:
    async def body() -> None:
        async with driven(tmp_path, screen="runs", size=(80, 24)) as (app, pilot):
            await until(pilot, lambda: "Nothing was run here yet" in screen_text(app))
            assert not runs_screen(app).check_action("resume", ())

    asyncio.run(body())


@pytest.mark.skipif(os.name != "posix", reason="needs POSIX signals")
def test_a_run_that_was_cut_is_resumed_by_a_key_and_what_nothing_needs_is_freed(tmp_path: Path) -> None:
    home, recipe = tmp_path / "home", write_tiny_run(tmp_path)

    async def body() -> None:
        async with driven(home, screen="runs") as (app, pilot):
            await app.session.start("prepare", {"recipe": [str(recipe)]}, f"prepare {recipe}")
            await until(pilot, lambda: runs_screen(app).state == "running")
            runner = next(p for p in psutil.process_iter(["cmdline"]) if _is_runner_of(p, home))
            for process in (runner, *runner.children()):
                process.send_signal(signal.SIGKILL)
            await until(pilot, lambda: not app.session.live)
            await pilot.press("f5")
            await until(pilot, lambda: runs_screen(app).state == "cut")
            await pilot.press("r")
            await until(pilot, lambda: runs_screen(app).state == "running")
            await until(pilot, lambda: runs_screen(app).state == "done")
            await until(pilot, lambda: "held_out_samples" in _details(app))
            (home / "artifacts" / "train-0123456789abcdef.partial").mkdir()
            await pilot.press("c")
            await until(pilot, lambda: isinstance(app.screen, Cleaning) and "1 to free" in screen_text(app))
            await pilot.press("escape")
            assert (home / "artifacts" / "train-0123456789abcdef.partial").exists()
            await pilot.press("c")
            await until(pilot, lambda: isinstance(app.screen, Cleaning) and "1 to free" in screen_text(app))
            await pilot.press("y")
            await until(pilot, lambda: isinstance(app.screen, RunsScreen))
            assert not (home / "artifacts" / "train-0123456789abcdef.partial").exists()
            await pilot.press("enter")
            await until(pilot, lambda: app.session.run is not None and app.session.run.exit_code == 0)

    asyncio.run(body())


def _details(app: AmigoApp) -> str:
    from amigo_local.tui.widgets.facts import Facts

    return "\n".join(line.plain for facts in app.screen.query(Facts) for line in facts.draw(100))


def _is_runner_of(process: psutil.Process, home: Path) -> bool:
    if "amigo_local.runner_process" not in " ".join(process.info["cmdline"] or ()):
        return False
    return any(str(home / "runs") in file.path for file in process.open_files())
