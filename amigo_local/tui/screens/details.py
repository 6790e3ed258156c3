"""FailureDetails: everything that is known about a failure, to read and to copy."""

from __future__ import annotations

from typing import ClassVar

from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Vertical
from textual.screen import ModalScreen
from textual.widgets import Footer, Static, TextArea

from amigo_local.domain.events import StageFailed


class FailureDetails(ModalScreen[None]):
    DEFAULT_CSS = """
    FailureDetails {
        align: center middle;
        Vertical { width: 90%; height: 80%; border: round $error; background: $surface; padding: 0 1; }
        TextArea { height: 1fr; border: none; background: $background; }
    }
    """
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape", "dismiss", "Close"),
        Binding("c", "copy", "Copy"),
    ]

    def __init__(self, failure: StageFailed) -> None:
        super().__init__()
        self.failure = failure

    @property
    def text(self) -> str:
        parts = [self.failure.message, f"hint: {self.failure.hint}" if self.failure.hint else "", self.failure.detail]
        return "\n\n".join(part for part in parts if part)

    def compose(self) -> ComposeResult:
        with Vertical():
            yield Static("What is known about the failure")
            yield TextArea(self.text, read_only=True, soft_wrap=True)
        yield Footer()

    def action_copy(self) -> None:
        self.app.copy_to_clipboard(self.text)
        self.notify("copied")
