"""PickRun: one of the runs of this home."""

from __future__ import annotations

from typing import ClassVar

from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Vertical
from textual.screen import ModalScreen
from textual.widgets import Footer, Static

from amigo_local.domain.events import Table
from amigo_local.tui.widgets.table_view import TableView


class PickRun(ModalScreen[str]):
    """Answers with the id of a run; None when none was picked."""

    DEFAULT_CSS = """
    PickRun {
        align: center middle;
        Vertical { width: 92%; height: 80%; border: round $primary; background: $surface; padding: 0 1; }
        Static { height: auto; }
    }
    """
    BINDINGS: ClassVar[list[BindingType]] = [Binding("escape", "dismiss", "Close")]

    def __init__(self, title: str, runs: Table, current: str) -> None:
        super().__init__()
        self._title, self._runs, self._current = title, runs, current

    def compose(self) -> ComposeResult:
        with Vertical():
            yield Static(self._title, markup=False)
            yield TableView("run", sort="started", descending=True, empty="no run yet")
        yield Footer()

    def on_mount(self) -> None:
        table = self.query_one(TableView)
        table.show(self._runs)
        table.point_at(self._current)
        table.focus_rows()

    def on_table_view_row_chosen(self, message: TableView.RowChosen) -> None:
        message.stop()
        self.dismiss(str(message.row[0]))
