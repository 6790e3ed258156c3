"""The Loop screen on real runs of the tiny model, in processes of their own."""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path

import pytest

from amigo_local.domain.events import AnyEvent, Note, Record, RunStarted
from amigo_local.domain.pipeline import PipelineStage
from amigo_local.engine.journal import Journal
from amigo_local.tui.app import AmigoApp
from amigo_local.tui.screens.leaving import Leaving
from amigo_local.tui.screens.loop import LoopScreen
from amigo_local.tui.widgets.failure_bar import FailureBar
from tests.support.tiny_run import write_tiny_run
from tests.support.tui_driving import driven, runner_of, screen_text, until

pytestmark = pytest.mark.skipif(os.name != "posix", reason="needs POSIX signals")


def rows(app: AmigoApp) -> list[PipelineStage]:
    screen = app.screen
    return screen.rows if isinstance(screen, LoopScreen) else []


def record(seq: int, event: AnyEvent) -> Record:
    return Record("20260101-000000-run", seq, 0.0, "run", event)


def statuses(app: AmigoApp) -> dict[str, str]:
    return {row.stage: row.status for row in rows(app)}


def test_a_person_takes_a_model_through_the_loop_with_a_crash_and_a_closed_window_in_between(tmp_path: Path) -> None:
    home, recipe = tmp_path / "home", write_tiny_run(tmp_path)

    async def first_window() -> None:
        async with driven(home) as (app, pilot):
            await until(pilot, lambda: app.machine is not None)
            assert "Recipe: choose one" in screen_text(app)
            app.session.saved.choice.recipe = [str(recipe)]
            await pilot.press("8", "1")  # as after choosing it on the Recipe screen
            await until(pilot, lambda: len(rows(app)) == 7)
            assert [row.status for row in rows(app)] == ["next", *["waiting"] * 6]
            await pilot.press("enter")
            await until(pilot, lambda: statuses(app).get("tokenizer") == "done" and not app.session.live)
            await until(pilot, lambda: statuses(app)["prepare"] == "next")
            await pilot.press("a")
            await until(pilot, lambda: statuses(app)["quantize"] == "running")
            # The kernel kills the worker, as it does when memory runs out.
            runner = runner_of(home)
            assert runner
            for child in runner.children():
                child.send_signal(signal.SIGKILL)
            await until(pilot, lambda: statuses(app)["quantize"] == "failed")
            bar = app.screen.query_one(FailureBar)
            await until(pilot, lambda: bar.display)
            assert "was killed (signal 9)" in str(bar.content) and "amigo-local plan" in str(bar.content)
            await until(pilot, lambda: not app.session.live)
            await pilot.press("a")
            await until(pilot, lambda: statuses(app)["train"] == "running")
            await pilot.press("ctrl+q")
            await until(pilot, lambda: isinstance(app.screen, Leaving))
            await pilot.press("l")
            await until(pilot, lambda: app.return_code == 0)

    async def second_window() -> None:
        async with driven(home, size=(80, 24)) as (app, pilot):
            await until(pilot, lambda: len(rows(app)) == 7 and all(row.status == "done" for row in rows(app)))
            await until(pilot, lambda: screen_text(app).splitlines()[0].endswith("✓"))
            assert len(list((home / "runs").iterdir())) == 1  # one run, taken up again and again
            await pilot.press("5")  # what the loop began and ended with is there to be compared
            compare = app.session.saved.compare
            await until(pilot, lambda: bool(compare.left and compare.right == "ollama:tiny-refined"))
            assert compare.left.endswith("tiny.gguf")
            await pilot.press("escape")
            # A changed setting makes what comes of it stale.
            app.session.saved.choice.overrides = ["train.learning_rate=5e-4"]
            await pilot.press("8", "1")
            await until(pilot, lambda: statuses(app)["train"] == "stale")
            assert statuses(app)["prepare"] == "done"
            assert next(row.stage for row in rows(app) if row.is_next) == "train"

    asyncio.run(first_window())
    asyncio.run(second_window())


def test_coming_back_shows_what_was_said_meanwhile_and_nothing_twice(tmp_path: Path) -> None:
    folder = tmp_path / "home" / "runs" / "20260101-000000-run"
    journal = Journal(folder / "journal.jsonl")
    journal.append(record(0, RunStarted("run", "run demo")))
    journal.append(record(1, Note("first")))

    async def body() -> None:
        async with driven(tmp_path / "home") as (app, pilot):
            await app.session.follow(folder.name)
            await until(pilot, lambda: "first" in screen_text(app))
            await pilot.press("8")
            journal.append(record(2, Note("second")))
            await until(pilot, lambda: bool(app.session.run and app.session.run.last_seq == 2))
            await pilot.press("1", "8", "1")
            await until(pilot, lambda: "second" in screen_text(app))
            assert screen_text(app).count("first") == screen_text(app).count("second") == 1

    asyncio.run(body())
