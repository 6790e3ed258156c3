"""AskText: one line of text, such as the name of a file to write."""

from __future__ import annotations

from typing import ClassVar

from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Vertical
from textual.screen import ModalScreen
from textual.widgets import Input, Static


class AskText(ModalScreen[str]):
    """Answers with what was typed; None when it was left."""

    DEFAULT_CSS = """
    AskText {
        align: center middle;
        Vertical {
            width: 72; max-width: 96%; height: auto; border: round $primary; background: $surface; padding: 1 2;
        }
        #question { text-style: bold; height: auto; }
        #help { color: $text-muted; height: auto; margin-bottom: 1; }
    }
    """
    BINDINGS: ClassVar[list[BindingType]] = [Binding("escape", "dismiss(None)", "Back")]

    def __init__(self, question: str, help: str = "", text: str = "") -> None:
        super().__init__()
        self._question, self._help, self._text = question, help, text

    def compose(self) -> ComposeResult:
        with Vertical():
            yield Static(self._question, id="question", markup=False)
            yield Static(self._help, id="help", markup=False)
            yield Input(self._text)

    def on_mount(self) -> None:
        self.query_one(Input).focus()

    def on_input_submitted(self, event: Input.Submitted) -> None:
        event.stop()
        if event.value.strip():
            self.dismiss(event.value.strip())
