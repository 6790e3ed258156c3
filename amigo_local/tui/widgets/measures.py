"""Measures: tables that compare models, turned: a line for each measure, a column for each model."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import ClassVar

from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import VerticalScroll
from textual.content import Content

from amigo_local.domain.events import Table
from amigo_local.presentation.formats import format_value, is_numeric
from amigo_local.presentation.visible_text import visible
from amigo_local.tui.widgets.drawn import Drawn
from amigo_local.tui.widgets.ink import MUTED, fitted, folded

_INTERVAL = "95 %"
_VALUE, _RANGE = 9, 12
"""`100.0 %`, and `(77–100 %)` behind it."""


class MeasureLines(Drawn):
    def __init__(self) -> None:
        super().__init__()
        self.tables: Sequence[Table] = ()

    def show(self, tables: Sequence[Table]) -> None:
        self.tables = tables
        self.redraw()

    def draw(self, width: int) -> list[Content]:
        return [line for table in self.tables for line in _turned(table, width)]


class Measures(VerticalScroll, can_focus=True):
    DEFAULT_CSS = """
    Measures { scrollbar-size-vertical: 1; padding: 0 1; border-left: blank; }
    Measures:focus { border-left: outer $primary; }
    """
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("k", "scroll_up", show=False),
        Binding("j", "scroll_down", show=False),
    ]

    def compose(self) -> ComposeResult:
        yield MeasureLines()

    def show(self, tables: Sequence[Table]) -> None:
        self.query_one(MeasureLines).show(tables)
        self.scroll_home(animate=False)


def _turned(table: Table, width: int) -> Iterator[Content]:
    """The first column names the models; an interval stands behind the measure it belongs to."""
    names = [visible(str(row[0])) for row in table.rows]
    cell = _VALUE + 1 + _RANGE
    label = max(12, width - len(names) * (cell + 1))
    yield Content.styled(fitted(visible(table.title), width), "bold $primary")
    heads = "".join(" " + fitted(fitted(name, _VALUE, right=True), cell) for name in names)
    yield Content.styled(fitted("", label) + heads, MUTED)
    for name, cells in _measures(table):
        first, *rest = folded(name, label)
        values = "".join(" " + fitted(text, cell) for text in cells)
        yield Content(fitted(fitted(first, label) + values, width))
        yield from (Content(fitted(f"  {line}", width)) for line in rest)
    yield Content("")


def _measures(table: Table) -> Iterator[tuple[str, list[str]]]:
    columns = table.columns
    for place, column in enumerate(columns[1:], start=1):
        if column.name.startswith(_INTERVAL):
            continue
        with_interval = place + 1 < len(columns) and columns[place + 1].name.startswith(_INTERVAL)
        cells = []
        for row in table.rows:
            text = visible(format_value(row[place], column))
            if is_numeric(column):
                text = fitted(text, _VALUE, right=True)
            cells.append(f"{text} ({row[place + 1]})" if with_interval else text)
        yield column.name, cells
