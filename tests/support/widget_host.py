"""An app of nothing but the widgets under test."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from textual.app import App, ComposeResult
from textual.message import Message
from textual.pilot import Pilot
from textual.widget import Widget

from amigo_local.tui.themes import THEMES
from tests.support.tui_driving import headless


class WidgetHost(App[None]):
    """Keeps the messages that reach it, but Textual's own."""

    def __init__(self, *widgets: Widget) -> None:
        super().__init__()
        self._widgets, self.told = widgets, list[Message]()
        for theme in THEMES:
            self.register_theme(theme)

    def compose(self) -> ComposeResult:
        yield from self._widgets

    async def _dispatch_message(self, message: Message) -> None:
        if type(message).__module__.startswith("amigo_local."):
            self.told.append(message)
        await super()._dispatch_message(message)

    def screen_text(self) -> str:
        """What stands on the screen, line by line."""
        lines = self.screen._compositor.render_strips()
        return "\n".join(strip.text.rstrip() for strip in lines)


Body = Callable[[WidgetHost, "Pilot[None]"], Awaitable[None]]


def hosted(*widgets: Widget, body: Body, size: tuple[int, int] = (80, 24), theme: str = "") -> None:
    async def run() -> None:
        app = WidgetHost(*widgets)
        async with headless(app, size) as pilot:
            if theme:
                app.theme = theme
            await pilot.pause()
            await body(app, pilot)

    asyncio.run(run())
