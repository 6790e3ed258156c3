"""Leaving: what becomes of the work that goes on when the app is closed."""

from __future__ import annotations

from typing import ClassVar

from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal, Vertical
from textual.screen import ModalScreen
from textual.widgets import Button, Static

from amigo_local.domain.run_state import RunState
from amigo_local.tui.widgets.screen_bar import run_line


class Leaving(ModalScreen[str]):
    """Answers leave, stop, cancel or stay."""

    DEFAULT_CSS = """
    Leaving {
        align: center middle;
        Vertical {
            width: 66; max-width: 96%; height: auto; border: round $primary; background: $surface; padding: 1 2;
        }
        #question { margin-bottom: 1; }
        Horizontal { height: auto; align-horizontal: center; }
        Button { margin: 0 1; min-width: 12; }
    }
    """
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape", "answer('stay')", "Stay"),
        Binding("l", "answer('leave')", "Leave it running"),
        Binding("s", "answer('stop')", "Stop after checkpoint"),
        Binding("x", "answer('cancel')", "Cancel it"),
    ]

    def __init__(self, state: RunState) -> None:
        super().__init__()
        self._state = state

    def compose(self) -> ComposeResult:
        with Vertical():
            yield Static(
                f"{run_line(self._state, True)}\n\n"
                "It can go on without this window: come back with `amigo-local`, or watch it with "
                f"`amigo-local runs watch {self._state.run_id}`.",
                id="question",
                markup=False,
            )
            with Horizontal():
                yield Button("Leave it [u]l[/]", id="leave", variant="primary")
                yield Button("[u]S[/]top it", id="stop")
                yield Button("[u]x[/] Cancel", id="cancel", variant="error")
                yield Button("Stay", id="stay")

    def on_button_pressed(self, event: Button.Pressed) -> None:
        event.stop()
        self.dismiss(event.button.id)

    def action_answer(self, answer: str) -> None:
        self.dismiss(answer)
