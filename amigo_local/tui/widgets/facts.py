"""Facts: a table that is read rather than chosen from."""

from __future__ import annotations

from textual.content import Content

from amigo_local.domain.events import Table
from amigo_local.presentation.formats import cells, is_numeric
from amigo_local.tui.widgets.drawn import Drawn
from amigo_local.tui.widgets.ink import MUTED, cut, folded

_FOLDED_FROM = 24
"""Columns; in fewer, a path would be a column of crumbs."""


class Facts(Drawn):
    """Its last column folds where there is room for it, and is cut where there is little."""

    DEFAULT_CSS = "Facts { height: auto; padding: 0 1; margin-top: 1; }"

    def __init__(self, table: Table) -> None:
        super().__init__()
        self._table = table

    def draw(self, width: int) -> list[Content]:
        table = self._table
        rows = [[column.name for column in table.columns], *cells(table)]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        last = max(1, width - sum(widths[:-1]) - 2 * (len(widths) - 1))
        lines = [Content(table.title).stylize("bold")]
        for place, row in enumerate(rows):
            before = "".join(
                f"{text.rjust(wide) if is_numeric(column) else text.ljust(wide)}  "
                for text, wide, column in zip(row[:-1], widths, table.columns, strict=False)
            )
            pieces = folded(row[-1], last) if last >= _FOLDED_FROM else [cut(row[-1], last)]
            for number, piece in enumerate(pieces):
                line = (before if number == 0 else " " * len(before)) + piece
                lines.append(Content(line).stylize(MUTED) if place == 0 else Content(line))
        return lines
