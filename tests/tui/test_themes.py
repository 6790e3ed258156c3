"""Screens that were seen, or made ahead, in another theme or at another size look as in a fresh start."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

from textual.pilot import Pilot

from amigo_local.tui.app import AmigoApp
from amigo_local.tui.screens.base import SCREENS
from amigo_local.tui.themes import DARK, LIGHT
from tests.support.pinned_session import PinnedSession
from tests.support.tui_driving import headless, settled, until

Before = Callable[[AmigoApp, "Pilot[None]"], Awaitable[None]]
SIZE = (120, 40)


def pictures(home: Path, theme: str, before: Before | None = None, size: tuple[int, int] = SIZE) -> dict[str, str]:
    """Of every screen, by name."""
    taken: dict[str, str] = {}

    async def body() -> None:
        session = PinnedSession(home)
        session.saved.theme = theme
        app = AmigoApp(session)
        app.animation_level = "none"
        async with headless(app, size) as pilot:
            await until(pilot, lambda: len(app._screens) == len(SCREENS))
            if before:
                await before(app, pilot)
            for name in SCREENS:
                app.action_show_screen(name)
                taken[name] = await settled(pilot)

    asyncio.run(body())
    return taken


async def before_they_are_seen(app: AmigoApp, pilot: Pilot[None]) -> None:
    await pilot.resize_terminal(*SIZE)
    app.action_toggle_light()
    await pilot.pause()


async def after_they_were_seen(app: AmigoApp, pilot: Pilot[None]) -> None:
    for name in SCREENS:
        app.action_show_screen(name)
        await settled(pilot)
    app.action_toggle_light()
    await pilot.pause()


def test_screens_look_the_same_whenever_theme_and_size_were_changed(tmp_path: Path) -> None:
    fresh = pictures(tmp_path, LIGHT)
    for before, size in ((before_they_are_seen, (80, 24)), (after_they_were_seen, SIZE)):
        other = pictures(tmp_path, DARK, before, size)
        assert [name for name in SCREENS if other[name] != fresh[name]] == [], before.__name__
