"""KeyFooter: Textual's Footer, made anew only when it has something else to say."""

from __future__ import annotations

from typing import Any

from textual.screen import Screen
from textual.widgets import Footer


class KeyFooter(Footer):
    """Every focus and every `refresh_bindings` asks for it, several times a change of screen, and making its widgets
    takes as long as drawing the rest."""

    def __init__(self) -> None:
        super().__init__(show_command_palette=True)
        self._told: object = None
        self._is_due = False

    def bindings_changed(self, screen: Screen[Any]) -> None:
        self._bindings_ready = True
        if screen.app.app_focus and self.is_attached and screen is self.screen and not self._is_due:
            self._is_due = True
            self.call_after_refresh(self._tell)

    async def _tell(self) -> None:
        self._is_due = False
        active = self.screen.active_bindings.values()
        keys = [(binding.key, binding.action, binding.description, enabled) for _, binding, enabled, _ in active]
        if keys != self._told:
            self._told = keys
            await self.recompose()
