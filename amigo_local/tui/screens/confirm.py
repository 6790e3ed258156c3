"""Confirm: a question before something that can't be taken back."""

from __future__ import annotations

from typing import ClassVar

from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal, Vertical, VerticalScroll
from textual.content import Content
from textual.screen import ModalScreen
from textual.widgets import Button, Static


class Confirm(ModalScreen[bool]):
    """True only when it was said so; `action` names what a yes does."""

    DEFAULT_CSS = """
    Confirm {
        align: center middle;
        Vertical {
            width: 72; max-width: 96%; height: auto; max-height: 90%;
            border: round $warning; background: $surface; padding: 1 2;
        }
        VerticalScroll { height: auto; max-height: 14; margin-bottom: 1; }
        Horizontal { height: auto; align-horizontal: center; }
        Button { margin: 0 1; }
    }
    """
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape,n", "answer(False)", "No"),
        Binding("y", "answer(True)", "Yes"),
    ]

    def __init__(self, question: str, action: str, details: str = "") -> None:
        super().__init__()
        self._question, self._action, self._details = question, action, details

    def compose(self) -> ComposeResult:
        with Vertical():
            with VerticalScroll(can_focus=bool(self._details)):
                yield Static(Content.assemble(Content(self._question).stylize("bold"), "\n", Content(self._details)))
            with Horizontal():
                yield Button(Content(f"{self._action} (y)"), id="yes", variant="warning")
                yield Button("No (escape)", id="no")

    def on_mount(self) -> None:
        self.query_one("#no", Button).focus()

    def on_button_pressed(self, event: Button.Pressed) -> None:
        event.stop()
        self.dismiss(event.button.id == "yes")

    def action_answer(self, answer: bool) -> None:
        self.dismiss(answer)
