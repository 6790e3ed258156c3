"""Braille: a canvas of terminal cells with eight dots each, for lines, dots and marks in several inks."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

# Unicode's block Braille Patterns (2800): one bit a dot, by column and row within a cell.
_DOTS = ((0x01, 0x02, 0x04, 0x40), (0x08, 0x10, 0x20, 0x80))
_BLANK = 0x2800


class Braille:
    """`width` x `height` cells, so twice as many dots across and four times as many down; (0, 0) is at the top left.
    An ink is a number above 0; where two meet in a cell, the later one colours it."""

    def __init__(self, width: int, height: int) -> None:
        self.width, self.height = width, height
        self.across, self.down = 2 * width, 4 * height
        self._dots = bytearray(width * height)
        self._inks = bytearray(width * height)
        self._marks: dict[int, str] = {}

    def dot(self, x: int, y: int, ink: int) -> None:
        if 0 <= x < self.across and 0 <= y < self.down:
            cell = (y >> 2) * self.width + (x >> 1)
            self._dots[cell] |= _DOTS[x & 1][y & 3]
            self._inks[cell] = ink

    def dots(self, xs: Sequence[float], ys: Sequence[float], ink: int) -> None:
        """Single dots; those above and below are drawn at the edge."""
        cells, inks, width, lowest = self._dots, self._inks, self.width, self.down - 1
        for x, y in zip(xs, ys, strict=True):
            if y == y:  # a NaN isn't
                across, down = int(x + 0.5), int(min(lowest, max(0.0, y)) + 0.5)
                cell = (down >> 2) * width + (across >> 1)
                cells[cell] |= _DOTS[across & 1][down & 3]
                inks[cell] = ink

    def mark(self, x: int, y: int, glyph: str, ink: int) -> None:
        """A character in the place of the cell that holds the dot."""
        if 0 <= x < self.across and 0 <= y < self.down:
            cell = (y >> 2) * self.width + (x >> 1)
            self._marks[cell], self._inks[cell] = glyph, ink

    def is_marked(self, x: int, y: int) -> bool:
        return (y >> 2) * self.width + (x >> 1) in self._marks

    def line(self, x0: int, y0: int, x1: int, y1: int, ink: int) -> None:
        """Ends included."""
        steps = max(abs(x1 - x0), abs(y1 - y0))
        if steps == 0:
            self.dot(x0, y0, ink)
            return
        for step in range(steps + 1):
            self.dot(x0 + round((x1 - x0) * step / steps), y0 + round((y1 - y0) * step / steps), ink)

    def curve(self, xs: Sequence[float], ys: Sequence[float], ink: int) -> None:
        """A line through points in dots, x ascending; what isn't finite leaves a gap. Of many points that share a
        column, the first, the lowest, the highest and the last are drawn."""
        before: tuple[int, int] | None = None
        for column, first, low, high, last in _columns(xs, ys):
            if column < 0:
                before = None
                continue
            if before is not None:
                self.line(*before, column, first, ink)
            self.line(column, low, column, high, ink)
            before = column, last

    def runs(self, row: int) -> Iterator[tuple[str, int]]:
        """One line of cells, as pieces of text of one ink each; ink 0 is blank."""
        start = row * self.width
        text, ink = "", -1
        for cell in range(start, start + self.width):
            here = self._inks[cell]
            glyph = self._marks.get(cell) or (chr(_BLANK + self._dots[cell]) if self._dots[cell] else " ")
            if here != ink and text:
                yield text, ink
                text = ""
            text, ink = text + glyph, here
        if text:
            yield text, ink


def _columns(xs: Sequence[float], ys: Sequence[float]) -> Iterator[tuple[int, int, int, int, int]]:
    """For each column of dots with points in it: the column, then the first, least, greatest and last of its values.
    Column -1: a gap."""
    column, first, low, high, last = -1, 0, 0, 0, 0
    finite = math.isfinite
    for x, y in zip(xs, ys, strict=True):
        if not finite(y):
            if column >= 0:
                yield column, first, low, high, last
                yield -1, 0, 0, 0, 0
                column = -1
            continue
        place, value = int(x + 0.5), round(y)
        if place != column:
            if column >= 0:
                yield column, first, low, high, last
            column, first, low, high = place, value, value, value
        elif value < low:
            low = value
        elif value > high:
            high = value
        last = value
    if column >= 0:
        yield column, first, low, high, last
