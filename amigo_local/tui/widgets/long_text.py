"""LongText: a text of any length to scroll through; only what is seen is drawn.

Textual's TextArea took 2 s to load 15,000 lines, without answering a key meanwhile.
"""

from __future__ import annotations

from collections.abc import Iterator

from rich.cells import chop_cells
from rich.segment import Segment
from textual.geometry import Size
from textual.scroll_view import ScrollView
from textual.strip import Strip

from amigo_local.presentation.visible_text import visible
from amigo_local.tui.widgets.ground import Ground

_MEASURED = 4000
"""Characters of a line that are measured one by one; a longer one that isn't plain is cut as if all were wide."""


class LongText(Ground, ScrollView, can_focus=True):
    """Lines are broken at the width, wherever that is."""

    DEFAULT_CSS = "LongText { height: 1fr; overflow-x: hidden; overflow-y: scroll; scrollbar-size-vertical: 1; }"

    def __init__(self, *, id: str | None = None) -> None:
        super().__init__(id=id)
        self.text = ""
        self._rows: list[str] = []
        self._folded: tuple[str, int] = ("", 0)

    def show(self, text: str) -> None:
        """Replaces the text, and goes to its beginning."""
        self.text = visible(text)
        self.scroll_home(animate=False, immediate=True)
        self._fold()

    def on_resize(self) -> None:
        self._fold()

    def _fold(self) -> None:
        width = self.scrollable_content_region.width
        if width > 0 and self._folded != (self.text, width):
            self._folded = (self.text, width)
            self._rows = [row for line in self.text.expandtabs(4).split("\n") for row in _pieces(line, width)]
            self.virtual_size = Size(width, len(self._rows))
        self.refresh()

    def render_line(self, y: int) -> Strip:
        place, width = y + self.scroll_offset.y, self.size.width
        text = self._rows[place] if place < len(self._rows) else ""
        return Strip([Segment(text, self.ground)]).adjust_cell_length(width, self.ground)


def _pieces(line: str, width: int) -> Iterator[str]:
    if len(line) <= width and line.isascii():
        yield line
    elif not line.isascii() and len(line) <= _MEASURED:
        yield from chop_cells(line, width)
    else:
        step = width if line.isascii() else max(1, width // 2)
        yield from (line[start : start + step] for start in range(0, len(line), step))
