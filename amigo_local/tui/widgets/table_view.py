"""TableView: a Table that is sorted by its headings and filtered by a text; new rows change neither, nor the cursor."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import ClassVar

from rich.cells import cell_len
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Vertical
from textual.content import Content
from textual.message import Message
from textual.widgets import Input, Static

from amigo_local.domain.artifact import Figure
from amigo_local.domain.events import Column, Table
from amigo_local.presentation.formats import format_value, is_numeric
from amigo_local.presentation.visible_text import visible
from amigo_local.tui.widgets.row_list import Heading, RowList

Row = tuple[Figure, ...]
_DETAIL_CHARACTERS = 1000
_LONGEST = 200
"""No column asks for more cells than this."""


class FilterBox(Input, can_focus=False):
    """Takes keys once it is opened. Escape empties it and gives them back to the rows; so do Enter and down, which keep
    what is typed."""

    class Left(Message):
        pass

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape", "leave(True)", "Clear filter"),
        Binding("enter,down", "leave(False)", "To the rows", show=False),
    ]

    def open(self) -> None:
        self.display = self.can_focus = True
        self.focus()

    def action_leave(self, emptying: bool) -> None:
        if emptying:
            self.value = ""
        self.post_message(self.Left())


class TableView(Vertical):
    """`/` filters, `o` sorts by the next column, `O` the other way round; a click on a heading sorts by it."""

    class RowChosen(Message):
        """Enter on a row, or a second click."""

        def __init__(self, table_view: TableView, row: Row) -> None:
            super().__init__()
            self.table_view, self.row = table_view, row

        @property
        def control(self) -> TableView:
            return self.table_view

    class RowPointed(Message):
        """The cursor is on this row now; also told when the rows were replaced."""

        def __init__(self, table_view: TableView, row: Row) -> None:
            super().__init__()
            self.table_view, self.row = table_view, row

        @property
        def control(self) -> TableView:
            return self.table_view

    DEFAULT_CSS = """
    TableView {
        height: 1fr;
        FilterBox { height: 1; border: none; padding: 0 1; background: $primary 12%; display: none; }
        FilterBox:focus { border: none; }
        .detail {
            height: auto; max-height: 4; padding: 0 1; color: $text-muted; display: none; border-top: solid $border;
        }
        .empty { height: 1fr; padding: 1 2; color: $text-muted; display: none; }
    }
    """
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("slash", "filter", "Filter", key_display="/"),
        Binding("o", "sort_next", "Sort", show=False),
        Binding("O", "reverse", "Reverse", show=False),
    ]

    def __init__(
        self,
        key: str = "",
        *,
        empty: str = "nothing here yet",
        sort: str = "",
        descending: bool = False,
        texts: Mapping[str, Callable[[Figure], str]] | None = None,
        id: str | None = None,
    ) -> None:
        """key: the column whose value tells a row from another (the first one where there is none of that name).
        sort: the column to sort by at first; without one, the order is the table's. texts: column -> what writes its
        values, where that isn't their format."""
        super().__init__(id=id)
        self._key, self._empty, self._texts = key, empty, dict(texts or {})
        self.sort_column, self.descending = sort, descending
        self.columns: tuple[Column, ...] = ()
        self._rows: list[Row] = []
        self._shown: list[int] = []
        """Places of the rows that pass the filter, as sorted."""
        self._cells: list[list[str]] = []
        self._haystacks: list[str] = []
        self._headings: list[Heading] = []

    def compose(self) -> ComposeResult:
        yield FilterBox(placeholder="filter; several words must all be there", select_on_focus=False)
        yield RowList()
        yield Static(self._empty, classes="empty", markup=False)
        yield Static(classes="detail", markup=False)

    # -- What is shown

    def show(self, table: Table) -> None:
        """Replaces all rows."""
        same = table.columns == self.columns
        known = dict(zip(self._rows, self._cells, strict=True)) if same else {}
        before, place = self.current, self.rows.cursor
        self.columns, self._rows = table.columns, list(table.rows)
        self._cells = [known.get(row) or self._written(row) for row in self._rows]
        self._haystacks = []
        self._headings = [
            Heading(column.name, is_numeric(column), min(_LONGEST, max(map(cell_len, texts), default=0)))
            for column, texts in zip(self.columns, _across(self._cells, len(self.columns)), strict=True)
        ]
        self._arrange(before, place)

    def clear(self) -> None:
        self.show(Table("", self.columns, ()))

    @property
    def rows(self) -> RowList:
        return self.query_one(RowList)

    @property
    def current(self) -> Row | None:
        """The row under the cursor."""
        return self._rows[self._shown[self.rows.cursor]] if self.rows.cursor < len(self._shown) else None

    @property
    def shown(self) -> list[Row]:
        """As filtered and sorted."""
        return [self._rows[place] for place in self._shown]

    def value(self, row: Row, column: str) -> Figure:
        """None too where there is no such column."""
        place = self._place_of(column)
        return None if place is None else row[place]

    def point_at(self, key: Figure) -> bool:
        """Puts the cursor on the row of that key, if it is shown."""
        place = next((at for at, row in enumerate(self.shown) if self._key_of(row) == key), None)
        if place is not None:
            self.rows.cursor = place
        return place is not None

    def _written(self, row: Row) -> list[str]:
        texts = []
        for value, column in zip(row, self.columns, strict=True):
            write = self._texts.get(column.name)
            text = write(value) if write else format_value(value, column)
            texts.append(" ".join(visible(text).split()) if column.format == "text" else text)
        return texts

    def _place_of(self, column: str) -> int | None:
        return next((place for place, known in enumerate(self.columns) if known.name == column), None)

    def _key_of(self, row: Row) -> Figure:
        return row[self._place_of(self._key) or 0] if row else None

    # -- Sorting and filtering

    def _arrange(self, before: Row | None, place: int) -> None:
        """before: the row that the cursor stays on; where it is gone, the cursor stays at its place."""
        words = self.query_one(FilterBox).value.casefold().split()
        if words and not self._haystacks:
            self._haystacks = ["\n".join(cells).casefold() for cells in self._cells]
        found = [at for at in range(len(self._rows)) if not words or all(word in self._haystacks[at] for word in words)]
        column = self._place_of(self.sort_column)
        if column is not None:
            rows = self._rows
            known = sorted((at for at in found if _is_known(rows[at][column])), key=lambda at: _order(rows[at][column]))
            if self.descending:
                known.reverse()
            found = known + [at for at in found if not _is_known(rows[at][column])]
        self._shown = found
        if before is not None:
            key = self._key_of(before)
            place = next((at for at, row in enumerate(found) if self._key_of(self._rows[row]) == key), place)
        self._draw(place, column)

    def _draw(self, at: int, sorted_by: int | None) -> None:
        marks = {} if sorted_by is None else {sorted_by: " ▼" if self.descending else " ▲"}
        self.rows.show(self._headings, [self._cells[place] for place in self._shown], marks, at)
        self.rows.display = bool(self._shown)
        empty = self.query_one(".empty", Static)
        empty.display = not self._shown
        empty.update(Content("no row has all of these words" if self._rows else self._empty))
        self._cursor_moved()

    def action_sort_next(self) -> None:
        names = [column.name for column in self.columns]
        if names:
            place = self._place_of(self.sort_column)
            self._sort_by(names[0 if place is None else (place + 1) % len(names)])

    def action_reverse(self) -> None:
        self._sort_by(self.sort_column or (self.columns[0].name if self.columns else ""))

    def on_row_list_heading_clicked(self, message: RowList.HeadingClicked) -> None:
        message.stop()
        self._sort_by(self.columns[message.column].name)

    def _sort_by(self, column: str) -> None:
        """The same one again: the other way round. Numbers are shown from the greatest at first."""
        place = self._place_of(column)
        if place is None:
            return
        self.descending = not self.descending if column == self.sort_column else is_numeric(self.columns[place])
        self.sort_column = column
        self._arrange(self.current, self.rows.cursor)

    def action_filter(self) -> None:
        self.query_one(FilterBox).open()

    def on_input_changed(self, message: Input.Changed) -> None:
        message.stop()
        self._arrange(self.current, self.rows.cursor)

    def on_filter_box_left(self, message: FilterBox.Left) -> None:
        message.stop()
        box = self.query_one(FilterBox)
        self.rows.focus()
        box.display = box.can_focus = bool(box.value)

    def focus_rows(self) -> None:
        self.rows.focus()

    # -- The cursor

    def on_row_list_moved(self, message: RowList.Moved) -> None:
        message.stop()
        self._cursor_moved()

    def on_row_list_chosen(self, message: RowList.Chosen) -> None:
        message.stop()
        if self.current is not None:
            self.post_message(self.RowChosen(self, self.current))

    def _cursor_moved(self) -> None:
        row = self.current
        self._show_detail()
        if row is not None:
            self.post_message(self.RowPointed(self, row))

    def on_resize(self) -> None:
        self.call_after_refresh(self._show_detail)

    def _show_detail(self) -> None:
        """The texts of the row that their cells have no room for."""
        detail, rows = self.query_one(".detail", Static), self.rows
        cells: Sequence[str] = self._cells[self._shown[rows.cursor]] if self.current is not None else ()
        cut = [place for place, text in enumerate(cells) if rows.is_cut(place, cell_len(text))]
        detail.display = bool(cut)
        lines = [f"{self.columns[place].name}: {cells[place][:_DETAIL_CHARACTERS]}" for place in cut]
        detail.update(Content("\n".join(lines)))


def _across(cells: Sequence[Sequence[str]], columns: int) -> list[Sequence[str]]:
    """The texts of each column."""
    return list(zip(*cells, strict=True)) if cells else [()] * columns


def _is_known(value: Figure) -> bool:
    return value is not None and not (isinstance(value, float) and math.isnan(value))


def _order(value: Figure) -> tuple[int, float, str]:
    """Numbers before texts, texts without regard to case."""
    if isinstance(value, str):
        return 1, 0.0, value.casefold()
    return 0, float(value or 0), ""
