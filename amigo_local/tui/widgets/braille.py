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
        column, first, low, high, last = -1, 0, 0, 0, 0

        def draw(before: tuple[int, int] | None) -> tuple[int, int]:
            if before is not None:
                self.line(*before, column, first, ink)
            self.line(column, low, column, high, ink)
            return column, last

        for x, y in zip(xs, ys, strict=True):
            if not (math.isfinite(x) and math.isfinite(y)):
                if column >= 0:
                    draw(before)
                before, column = None, -1
                continue
            place, value = round(x), round(y)
            if place == column:
                low, high, last = min(low, value), max(high, value), value
                continue
            if column >= 0:
                before = draw(before)
            column, first, low, high, last = place, value, value, value, value
        if column >= 0:
            draw(before)

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
