"""FailureBar: what went wrong and what to do about it, until it is dismissed."""

from __future__ import annotations

from textual import events
from textual.content import Content
from textual.widgets import Static

from amigo_local.domain.events import StageFailed


class FailureBar(Static):
    """Hidden while there is nothing to say. Escape, a click, another screen and a new start hide it."""

    DEFAULT_CSS = """
    FailureBar {
        dock: bottom; margin-bottom: 1; height: auto; max-height: 6; display: none; padding: 0 1;
        background: $error 18%; color: $text; border-left: thick $error;
    }
    FailureBar.shown { display: block; }
    """

    def show(self, failure: StageFailed, here: str = "") -> None:
        """here: where in the app one does what the hint says."""
        text = Content.from_markup("[b $error]✗[/] $message", message=failure.message)
        if failure.hint:
            text = Content.assemble(text, "\n", Content.from_markup("[$warning]hint:[/] $hint", hint=failure.hint))
        if here:
            text += Content.from_markup("  [$accent]→ $here[/]", here=here)
        keys = "ctrl+e details · esc to dismiss" if failure.detail else "esc to dismiss"
        self.update(Content.assemble(text, Content.from_markup("  [dim]$keys[/]", keys=keys)))
        self.add_class("shown")

    def hide(self) -> None:
        self.remove_class("shown")

    def on_click(self, event: events.Click) -> None:
        event.stop()
        self.hide()
