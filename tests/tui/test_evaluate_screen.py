"""The Evaluate screen on a tiny model: a real evaluation by keys, its answers, older ones, and what goes wrong."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import get_args

import msgspec
import pytest
from textual.widgets import Input

from amigo_local.domain.events import Record
from amigo_local.domain.recipe import Suite
from amigo_local.engine.runner import Runner
from amigo_local.engine.workspace import Workspace
from amigo_local.stages.answers import past_evaluations
from amigo_local.stages.evaluate import EvaluateRequest
from amigo_local.tui.app import AmigoApp
from amigo_local.tui.evaluations import (
    SUITES,
    Answers,
    evaluate_params,
    evaluate_title,
    step_problems,
)
from amigo_local.tui.saved_state import EvaluateState, SavedState, read_state, write_state
from amigo_local.tui.screens.evaluate import EvaluateScreen
from amigo_local.tui.screens.pick_row import PickRow
from amigo_local.tui.widgets.answer_view import AnswerView
from amigo_local.tui.widgets.evaluation_progress import EvaluationProgress
from amigo_local.tui.widgets.failure_bar import FailureBar
from tests.support.pinned_session import recorded
from tests.support.tiny_home import Home, in_this_process
from tests.support.tui_driving import OFFLINE, driven, screen_text, until


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One with a prepared set, whose run is the followed one, and nothing evaluated."""
    made = Home(tmp_path_factory.mktemp("evaluate"))
    made.done(verb="prepare")
    saved = SavedState(evaluate=EvaluateState(refs=[str(made.gguf)]))
    write_state(made.workspace.root, saved)
    return made.workspace.root


def evaluate(home: Path, *suites: str) -> None:
    """As the command line does."""
    records: list[Record] = []
    gguf = str(home.parent / "tiny.gguf")
    request = EvaluateRequest(ref=(gguf,), suite=suites, max_tokens=4)  # type: ignore[arg-type]
    outcome = Runner(Workspace(home), OFFLINE, in_this_process, records.append).run("evaluate", request)
    assert outcome.exit_code == 0, outcome.error


def screen(app: AmigoApp) -> EvaluateScreen:
    assert isinstance(app.screen, EvaluateScreen), app.screen
    return app.screen


def test_an_evaluation_is_chosen_started_watched_and_its_failures_read_by_keys(home: Path) -> None:
    async def body() -> None:
        async with driven(home, screen="evaluate") as (app, pilot):
            await until(pilot, lambda: "Nothing was evaluated yet" in screen_text(app) and screen(app).form.has_focus)
            assert not isinstance(app.focused, Input)
            await pilot.press("end", *["left"] * 3)  # the longest answer
            await pilot.press("up", *["left"] * 5)
            assert (screen(app).state.max_tokens, screen(app).state.problems) == (64, 8)
            assert "8 of 164" in screen_text(app) and "64 tokens" in screen_text(app)
            await pilot.press("enter")
            progress = app.screen.query_one(EvaluationProgress)
            shown: set[str] = set()

            def done() -> bool:
                shown.add("\n".join(line.plain for line in progress.draw(60)))
                return screen(app).answers is not None

            await until(pilot, done)
            assert any("prompts" in text and "▶ running" in text for text in shown)
            answers = screen(app).answers
            assert answers is not None and answers.failures == 8
            title = app.session.run.title if app.session.run else ""
            assert title.startswith("evaluate ") and "--problems 8 --max-tokens 64" in title
            await until(pilot, lambda: screen(app).rows.has_focus_within)
            text = screen_text(app)
            assert "Directness on held-out prompts" in text and "code at once" in text and "tiny.gguf" in text
            everything = len(screen(app).rows.shown)
            await pilot.press("f")
            assert len(screen(app).rows.shown) == 8 < everything
            await pilot.press("enter")
            await until(pilot, lambda: screen(app).opened is not None and "✗" in screen_text(app))
            first = screen(app).opened
            assert first is not None and first[0] == "humaneval" and str(first[1]) in screen_text(app)
            assert "def " in screen_text(app)  # the prompt
            await pilot.press("n")
            await until(pilot, lambda: screen(app).opened not in (None, first))
            await pilot.press("p")
            await until(pilot, lambda: screen(app).opened == first)
            await pilot.press("left_square_bracket")  # not a failure: directness runs nothing
            await until(pilot, lambda: (screen(app).opened or ("",))[0] == "directness")
            assert app.screen.query(AnswerView).first().text
            await pilot.press("n", "escape")
            await until(pilot, lambda: screen(app).opened is None and screen(app).rows.has_focus_within)
            await pilot.press("7")
            await until(pilot, lambda: not isinstance(app.screen, EvaluateScreen))

    asyncio.run(body())
    assert read_state(home).evaluate.problems == 8  # and is there again tomorrow


def test_an_older_evaluation_is_chosen_and_stays_chosen(home: Path) -> None:
    evaluate(home, "directness")

    async def choose() -> None:
        async with driven(home, size=(80, 24), screen="evaluate") as (app, pilot):
            await until(pilot, lambda: screen(app).answers is not None)
            assert "humaneval" not in screen_text(app) and screen(app).state.shown == ""
            await pilot.press("o")
            await until(pilot, lambda: isinstance(app.screen, PickRow))
            await pilot.press("down", "enter")
            await until(pilot, lambda: isinstance(app.screen, EvaluateScreen) and screen(app).answers.failures == 8)  # type: ignore[union-attr]

    async def again() -> None:
        async with driven(home, size=(80, 24), screen="evaluate") as (app, pilot):
            await until(pilot, lambda: screen(app).answers is not None)
            assert screen(app).where == screen(app).state.shown == older

    asyncio.run(choose())
    newest, older = [str(row[-1]) for row in past_evaluations(Workspace(home)).rows]
    assert newest != older
    asyncio.run(again())


def test_a_model_that_is_gone_is_told_with_what_to_do(home: Path, tmp_path: Path) -> None:
    saved = SavedState(evaluate=EvaluateState(refs=[str(home.parent / "gone.gguf")], suites=["humaneval"]))
    write_state(tmp_path, saved)

    async def body() -> None:
        async with driven(tmp_path, size=(80, 24), screen="evaluate") as (app, pilot):
            await until(pilot, lambda: screen(app).form.has_focus)
            await pilot.press("e")
            bar = app.screen.query_one(FailureBar)
            await until(pilot, lambda: bar.display)
            assert "gone.gguf" in str(bar.content) and "hint:" in str(bar.content)
            await until(pilot, lambda: not app.session.live and screen(app).form.disabled is False)

    asyncio.run(body())


def test_what_is_asked_is_what_a_person_would_type() -> None:
    state = EvaluateState(refs=["a b.gguf", "ollama:new"], suites=["humaneval", "directness"])
    step_problems(state, -1)
    params = evaluate_params(state)
    assert params == {
        "ref": ["a b.gguf", "ollama:new"], "suite": ["directness", "humaneval"], "problems": 82, "max_tokens": 512
    }  # fmt: skip
    assert evaluate_title(params) == (
        "evaluate 'a b.gguf' ollama:new --suite directness --suite humaneval --problems 82"
    )
    assert msgspec.convert(params, EvaluateRequest).suite == ("directness", "humaneval")
    step_problems(state, 1)
    assert state.problems is None and "problems" not in evaluate_params(state)


def test_the_way_through_failures_leaves_out_what_passed() -> None:
    every = next(table for table in recorded("answers") if getattr(table, "title", "") == "Answers")
    failed = msgspec.structs.replace(every, rows=tuple(row for row in every.rows if str(row[3]).startswith("failed")))
    answers, keys = Answers(every, failed), list(dict.fromkeys((row[1], row[0]) for row in every.rows))
    wrong = list(dict.fromkeys((row[1], row[0]) for row in failed.rows))
    assert 1 < len(wrong) < len(keys) and answers.failures == len(wrong)
    assert answers.step(keys[0], 1, failures=False) == keys[1]
    here, met = keys[0], []
    while found := answers.step(here, 1, failures=True):
        met.append(here := found)
    assert met == wrong
    assert answers.step(wrong[-1], -1, failures=True) == wrong[-2]
    assert answers.step(keys[-1], 1, failures=False) is None and answers.step(keys[0], -1, failures=False) is None
    assert answers.place(keys[2]) == f"3 of {len(keys)}"


def test_every_suite_is_offered() -> None:
    assert list(SUITES) == list(get_args(Suite))
