"""The app around its screens: moving about, failures, themes, leaving."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
from textual.pilot import Pilot
from textual.widgets import Static, TextArea

from amigo_local.domain.errors import InputError
from amigo_local.domain.events import StageFailed
from amigo_local.tui.app import AmigoApp
from amigo_local.tui.screens.base import SCREENS, AmigoScreen
from amigo_local.tui.screens.details import FailureDetails
from amigo_local.tui.screens.doctor import DoctorScreen
from amigo_local.tui.screens.leaving import Leaving
from amigo_local.tui.widgets.failure_bar import FailureBar
from amigo_local.tui.widgets.key_footer import KeyFooter
from tests.support.pinned_session import PinnedSession
from tests.support.tui_driving import headless, screen_text, until


def drive(
    home: Path, body: Callable[[AmigoApp, Pilot[None]], Awaitable[None]], size: tuple[int, int] = (80, 24), **more: bool
) -> AmigoApp:
    app = AmigoApp(PinnedSession(home, **more))

    async def run() -> None:
        async with headless(app, size) as pilot:
            await pilot.pause()
            await body(app, pilot)

    asyncio.run(run())
    return app


def shown(app: AmigoApp) -> str:
    return app.screen.NAME if isinstance(app.screen, AmigoScreen) else type(app.screen).__name__


def text_of(widget: Static) -> str:
    return str(widget.content)


def test_every_screen_is_one_key_away_and_is_there_again_after_a_restart(tmp_path: Path) -> None:
    async def body(app: AmigoApp, pilot: Pilot[None]) -> None:
        for key, name in enumerate(SCREENS, start=1):
            await pilot.press("escape", str(key))
            await pilot.pause()
            assert shown(app) == name
        await app.session.close()

    drive(tmp_path, body, with_run=False)
    again = AmigoApp(PinnedSession(tmp_path))
    assert again._first_screen == "doctor"


def test_a_click_on_a_name_goes_there(tmp_path: Path) -> None:
    async def body(app: AmigoApp, pilot: Pilot[None]) -> None:
        await pilot.click(offset=(20, 0))
        await pilot.pause()
        assert shown(app) == "recipe"

    drive(tmp_path, body)


def test_a_failure_is_a_message_with_its_hint_and_details_on_demand(tmp_path: Path) -> None:
    async def body(app: AmigoApp, pilot: Pilot[None]) -> None:
        app.show_failure(InputError("no [b]such[/ model", "amigo-local models ls"))
        await pilot.pause()
        bar = app.screen.query_one(FailureBar)
        assert bar.display and "no [b]such[/ model" in str(bar.content) and "amigo-local models ls" in str(bar.content)
        assert "→ 2 Models" in str(bar.content)  # the command line's words, and where that is here
        await pilot.click(FailureBar)
        assert not bar.display
        app.show_failure(InputError("it doesn't fit", "--set train.lora.rank=8 would fit"))
        await pilot.press("3")
        app.show_failure(InputError("it doesn't fit", "--set train.lora.rank=8 would fit"))
        assert "→" not in str(app.screen.query_one(FailureBar).content)  # one is there already
        await pilot.press("1")
        app.show_failure(InputError("no such model"))
        await pilot.press("escape")
        assert not bar.display
        app.show_failure(InputError("no such model"))
        await pilot.press("8", "1")
        assert shown(app) == "loop" and not bar.display
        app.show_failure(StageFailed("it broke", "try again", 1, "Traceback: line 1"))
        await pilot.press("ctrl+e")
        await pilot.pause()
        assert isinstance(app.screen, FailureDetails)
        assert app.screen.query_one(TextArea).text == "it broke\n\nhint: try again\n\nTraceback: line 1"
        await pilot.press("escape")
        assert shown(app) == "loop"

    drive(tmp_path, body)


def test_the_theme_changes_and_is_remembered(tmp_path: Path) -> None:
    async def body(app: AmigoApp, pilot: Pilot[None]) -> None:
        assert app.theme == "amigo-dark"
        await pilot.press("ctrl+t")
        assert app.theme == "amigo-light"
        await app.session.close()

    drive(tmp_path, body)
    assert AmigoApp(PinnedSession(tmp_path)).theme == "amigo-light"


@pytest.mark.parametrize(("key", "left"), [("l", True), ("escape", False)])
def test_quitting_while_something_runs_asks_first(tmp_path: Path, key: str, left: bool) -> None:
    async def body(app: AmigoApp, pilot: Pilot[None]) -> None:
        await pilot.pause()
        await pilot.press("ctrl+q")
        await pilot.pause()
        assert isinstance(app.screen, Leaving)
        assert "runs watch" in text_of(app.screen.query_one("#question", Static))
        await pilot.press(key)
        await pilot.pause()
        await pilot.pause()

    app = drive(tmp_path, body)
    assert (app.return_code == 0) is left


def test_quitting_asks_above_a_dialog_too(tmp_path: Path) -> None:
    async def body(app: AmigoApp, pilot: Pilot[None]) -> None:
        app.show_failure(StageFailed("it broke", "try again", 1, "Traceback: line 1"))
        await pilot.press("ctrl+e")
        await until(pilot, lambda: isinstance(app.screen, FailureDetails))
        await pilot.press("ctrl+q")
        await until(pilot, lambda: isinstance(app.screen, Leaving))
        await pilot.press("escape")
        await until(pilot, lambda: isinstance(app.screen, FailureDetails))
        await pilot.press("ctrl+q", "ctrl+q")  # twice: it isn't to be asked again
        await pilot.pause()

    assert drive(tmp_path, body).return_code == 0


def test_quitting_while_nothing_runs_just_ends(tmp_path: Path) -> None:
    async def body(app: AmigoApp, pilot: Pilot[None]) -> None:
        await pilot.press("ctrl+q")
        await pilot.pause()

    assert drive(tmp_path, body, with_run=False).return_code == 0


@pytest.mark.parametrize("size", [(40, 10), (300, 90)])
def test_every_screen_shows_itself_at_any_size(tmp_path: Path, size: tuple[int, int]) -> None:
    async def body(app: AmigoApp, pilot: Pilot[None]) -> None:
        for name in SCREENS:
            app.action_show_screen(name)
            await pilot.pause()
            await pilot.resize_terminal(size[0] + 10, size[1] + 3)
            await pilot.pause()
            await pilot.resize_terminal(*size)
            await pilot.pause()
            assert shown(app) == name

    drive(tmp_path, body, size)


def test_a_failure_waits_for_a_screen_that_is_not_there_yet(tmp_path: Path) -> None:
    async def body(app: AmigoApp, pilot: Pilot[None]) -> None:
        screen = DoctorScreen()
        screen.show_failure(StageFailed("no such model", "", 2))
        app.push_screen(screen)
        await until(pilot, lambda: "no such model" in screen_text(app))

    drive(tmp_path, body)


def test_a_signal_waits_for_a_screen_that_is_being_made(tmp_path: Path) -> None:
    """Textual fails on a screen whose parts it is mounting when it ends."""

    async def body(app: AmigoApp, pilot: Pilot[None]) -> None:
        async with app._making:
            app.call_later(app.leave)
            await pilot.pause(0.1)
            assert not app._exit
        while not app._exit:
            await asyncio.sleep(0.01)

    assert drive(tmp_path, body).return_code == 0


def test_the_keys_below_are_made_anew_only_when_they_are_others(tmp_path: Path) -> None:
    async def body(app: AmigoApp, pilot: Pilot[None]) -> None:
        footer = app.screen.query_one(KeyFooter)
        await until(pilot, lambda: "Pause" in screen_text(app).splitlines()[-1])
        before = list(footer.children)
        app.screen.refresh_bindings()
        await pilot.pause()
        assert list(footer.children) == before
        assert app.session.run
        app.session.run.paused = True
        app.screen.refresh_bindings()
        await until(pilot, lambda: "Continue" in screen_text(app).splitlines()[-1])
        assert list(footer.children) != before

    drive(tmp_path, body, (120, 40))
