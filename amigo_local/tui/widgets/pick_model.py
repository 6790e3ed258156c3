"""PickModel: one model out of a list."""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar

from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Vertical
from textual.screen import ModalScreen
from textual.widgets import Static

from amigo_local.domain.artifact import Figure
from amigo_local.domain.events import Table
from amigo_local.tui.widgets.table_view import TableView


class PickModel(ModalScreen[str]):
    """Answers with the first column of the chosen row; None when it was left."""

    DEFAULT_CSS = """
    PickModel {
        align: center middle;
        #box {
            width: 90; max-width: 96%; height: 80%; border: round $primary; background: $surface; padding: 0 1;
        }
        #question { text-style: bold; height: auto; padding: 0 1; }
        #help { color: $text-muted; height: auto; padding: 0 1; margin-bottom: 1; }
        RowList { background: $surface; }
    }
    """
    BINDINGS: ClassVar[list[BindingType]] = [Binding("escape", "dismiss(None)", "Back")]

    def __init__(self, question: str, table: Table, write: Callable[[Figure], str], at: str = "") -> None:
        """write: how the first column is written. at: its value in the row that the cursor begins on."""
        super().__init__()
        self._question, self._table, self._write, self._at = question, table, write, at

    def compose(self) -> ComposeResult:
        with Vertical(id="box"):
            yield Static(self._question, id="question", markup=False)
            yield Static("enter chooses, / filters, escape goes back", id="help")
            yield TableView(texts={self._table.columns[0].name: self._write})

    def on_mount(self) -> None:
        view = self.query_one(TableView)
        view.show(self._table)
        view.point_at(self._at)
        view.focus_rows()

    def on_table_view_row_chosen(self, event: TableView.RowChosen) -> None:
        event.stop()
        self.dismiss(str(event.row[0]))
