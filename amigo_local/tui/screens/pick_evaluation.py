"""PickEvaluation: one of the evaluations of this home."""

from __future__ import annotations

from typing import ClassVar

from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Vertical
from textual.screen import ModalScreen
from textual.widgets import Footer, Static

from amigo_local.domain.events import Table
from amigo_local.tui.widgets.table_view import TableView

FOLDER = "evaluation"
"""The column that tells one from another."""


class PickEvaluation(ModalScreen[str]):
    """Answers with the folder of an evaluation; None when none was picked."""

    DEFAULT_CSS = """
    PickEvaluation {
        align: center middle;
        Vertical { width: 92%; height: 80%; border: round $primary; background: $surface; padding: 0 1; }
        Static { height: auto; }
    }
    """
    BINDINGS: ClassVar[list[BindingType]] = [Binding("escape", "dismiss(None)", "Back")]

    def __init__(self, evaluations: Table, current: str) -> None:
        super().__init__()
        self._evaluations, self._current = evaluations, current

    def compose(self) -> ComposeResult:
        with Vertical():
            yield Static("Which evaluation?", markup=False)
            yield TableView(FOLDER, empty="there is none yet")
        yield Footer()

    def on_mount(self) -> None:
        table = self.query_one(TableView)
        table.show(self._evaluations)
        table.point_at(self._current)
        table.focus_rows()

    def on_table_view_row_chosen(self, message: TableView.RowChosen) -> None:
        message.stop()
        self.dismiss(str(message.table_view.value(message.row, FOLDER)))
