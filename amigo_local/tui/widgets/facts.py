"""Facts: a table that is read rather than chosen from."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rich.cells import cell_len
from textual.content import Content

from amigo_local.domain.events import Table
from amigo_local.presentation.formats import cells, is_numeric
from amigo_local.tui.widgets.drawn import Drawn
from amigo_local.tui.widgets.ink import MUTED, cut, fitted, folded

_FOLDED_FROM = 24
"""Columns; in fewer, a long text would be a column of crumbs."""
_INDENT = 4


class Facts(Drawn):
    """Its last column folds where there is room for it; where there is little, what is too long for it stands below
    its row, or the whole column is left out when it is to `spare`."""

    DEFAULT_CSS = "Facts { height: auto; padding: 0 1; margin-top: 1; }"

    def __init__(self, table: Table, *, spare: bool = False) -> None:
        super().__init__()
        self._table, self._spare = table, spare

    def draw(self, width: int) -> list[Content]:
        rows = [[column.name for column in self._table.columns], *cells(self._table)]
        widths = [max(map(cell_len, column)) for column in zip(*rows, strict=True)]
        lines = [Content(cut(self._table.title, width)).stylize("bold")]
        for place, row in enumerate(rows):
            written = map(Content, self._lines(row, widths, width, heading=place == 0))
            lines += [line.stylize(MUTED) if place == 0 else line for line in written]
        return lines

    def _lines(self, row: Sequence[str], widths: Sequence[int], width: int, heading: bool) -> Iterator[str]:
        *first, last = row
        before = "".join(
            fitted(text, wide, is_numeric(column)) + "  "
            for text, wide, column in zip(first, widths, self._table.columns, strict=False)
        )
        room = width - cell_len(before)
        if room >= min(widths[-1], _FOLDED_FROM):
            for place, piece in enumerate(folded(last, room)):
                yield (before if place == 0 else " " * cell_len(before)) + piece
        elif self._spare:
            yield cut(before.rstrip(), width)
        elif heading or cell_len(last) <= room:
            yield cut(before + last, width)
        else:
            yield cut(before.rstrip(), width)
            yield from (" " * _INDENT + piece for piece in folded(last, max(1, width - _INDENT)))
