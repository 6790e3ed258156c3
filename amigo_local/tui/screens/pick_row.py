"""PickRow: one row of a table."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import ClassVar

from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Vertical
from textual.screen import ModalScreen
from textual.widgets import Static

from amigo_local.domain.artifact import Figure
from amigo_local.domain.events import Table
from amigo_local.tui.widgets.table_view import TableView


class PickRow(ModalScreen[str]):
    """Answers with the key of the chosen row; None when it was left."""

    DEFAULT_CSS = """
    PickRow {
        align: center middle;
        #box {
            width: 110; max-width: 96%; height: 80%; border: round $primary; background: $surface; padding: 0 1;
        }
        #question { text-style: bold; height: auto; padding: 0 1; }
        #help { color: $text-muted; height: auto; padding: 0 1; margin-bottom: 1; }
        RowList { background: $surface; }
    }
    """
    AUTO_FOCUS = "RowList"
    BINDINGS: ClassVar[list[BindingType]] = [Binding("escape", "dismiss(None)", "Back")]

    def __init__(
        self,
        question: str,
        table: Table,
        key: str,
        at: str = "",
        *,
        texts: Mapping[str, Callable[[Figure], str]] | None = None,
        newest_first: str = "",
    ) -> None:
        """key: the column that tells a row from another. at: its value where the cursor begins. texts: column -> what
        writes its values. newest_first: the column to sort by, the greatest first; empty: as it is."""
        super().__init__()
        self._question, self._table, self._key, self._at = question, table, key, at
        self._texts, self._newest_first = texts, newest_first

    def compose(self) -> ComposeResult:
        with Vertical(id="box"):
            yield Static(self._question, id="question", markup=False)
            yield Static("enter chooses, / filters, escape goes back", id="help")
            yield TableView(self._key, sort=self._newest_first, descending=True, texts=self._texts)

    def on_mount(self) -> None:
        view = self.query_one(TableView)
        view.show(self._table)
        view.point_at(self._at)
        view.focus_rows()

    def on_table_view_row_chosen(self, event: TableView.RowChosen) -> None:
        event.stop()
        self.dismiss(str(event.table_view.value(event.row, self._key)))
