"""ModelFacts: what is known about a model, a line for each property, then its tensors by type."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rich.cells import cell_len
from rich.console import Console
from rich.text import Text
from textual.content import Content

from amigo_local.domain.events import StageFailed, Table
from amigo_local.presentation.formats import cells, is_numeric
from amigo_local.presentation.visible_text import visible
from amigo_local.tui.widgets.drawn import Drawn
from amigo_local.tui.widgets.ink import cut, fitted

_LONGEST = 600
"""Characters of one value: a stop word or a licence can be anything."""
_LABEL = 20
"""Cells; longer names are cut."""
_PLAIN = Console(width=80)

Fact = tuple[str, str]


class ModelFacts(Drawn):
    DEFAULT_CSS = "ModelFacts { padding: 0 1; }"

    def __init__(self) -> None:
        super().__init__()
        self.facts: Sequence[Fact] = ()
        self.tensors: Table | None = None
        self.notes: Sequence[str] = ()
        self.failure: StageFailed | None = None
        self._drawn: tuple[int, list[Content]] = (0, [])

    def show(
        self,
        facts: Sequence[Fact],
        tensors: Table | None = None,
        notes: Sequence[str] = (),
        failure: StageFailed | None = None,
    ) -> None:
        self.facts, self.tensors, self.notes, self.failure = facts, tensors, notes, failure
        self._drawn = (0, [])
        self.redraw()

    def draw(self, width: int) -> list[Content]:
        if self._drawn[0] != width:
            self._drawn = (width, list(self._lines(max(12, width))))
        return self._drawn[1]

    def _lines(self, width: int) -> Iterator[Content]:
        if self.failure:
            yield from (Content.styled(line, "$error") for line in _folded(f"✗ {self.failure.message}", width))
            hint = f"hint: {self.failure.hint}" if self.failure.hint else ""
            yield from (Content(line) for line in _folded(hint, width) if hint)
        for note in self.notes:
            yield from (Content.styled(line, "$warning") for line in _folded(note, width))
        label = min(_LABEL, max((cell_len(name) for name, _ in self.facts), default=0))
        for name, value in self.facts:
            for place, line in enumerate(_folded(value, width - label - 2)):
                yield Content.assemble((fitted("" if place else name, label), "dim"), "  ", line)
        if self.tensors:
            yield Content("")
            yield from _small_table(self.tensors, width)


def _small_table(table: Table, width: int) -> Iterator[Content]:
    """As wide as it must be, cut at the right where it has no room."""
    rows = [[column.name for column in table.columns], *cells(table)]
    widths = [max(cell_len(row[place]) for row in rows) for place in range(len(table.columns))]
    yield Content.styled(cut(table.title, width), "bold")
    for at, row in enumerate(rows):
        texts = [
            fitted(text, wide, is_numeric(column))
            for text, wide, column in zip(row, widths, table.columns, strict=True)
        ]
        line = cut("  ".join(texts), width)
        yield Content.styled(line, "dim") if at == 0 else Content(line)


def _folded(text: str, width: int) -> Iterator[str]:
    """Lines of at most `width` cells."""
    shown = visible(text[:_LONGEST]) + ("…" if len(text) > _LONGEST else "")
    for line in shown.split("\n"):
        if cell_len(line) <= width:
            yield line
        else:
            yield from (part.plain.rstrip() for part in Text(line).wrap(_PLAIN, max(4, width)))
