"""Curves: one plot of metric series over training steps, with axes and a legend, drawn in braille.

Ours, because no library was quick enough at 120x20 with two series of 4,096 points: textual-plot 0.10 took 46 ms a
draw (and needs numpy, which the program starts without), textual-plotext 1.0 69 ms, this 7 ms.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from rich.cells import cell_len
from rich.segment import Segment
from rich.style import Style
from textual.color import Color
from textual.geometry import Size
from textual.strip import Strip
from textual.widget import Widget

from amigo_local.presentation.axes import bounds, ticks
from amigo_local.tui.widgets.braille import Braille
from amigo_local.tui.widgets.ink import cut, series_color

CurveKind = Literal["line", "dots", "marks"]
"""dots: noisy, faint, and behind the others; marks: a line with a sign at each of its points."""
_GLYPHS = {"line": "━", "dots": "·", "marks": "◆"}
_LEGEND_LINES = 3
_WITH_LABELS, _WITH_STEPS = 20, 5
"""From how many columns and rows on there is room for the numbers beside and below."""


@dataclass(frozen=True)
class Curve:
    name: str
    """In the legend; without one, its value alone is there."""
    steps: Sequence[float]
    values: Sequence[float]
    color: int = 0
    """Place among the theme's colours."""
    kind: CurveKind = "line"
    glyph: str = ""
    """Told apart without colour: it stands at the end of the curve, or at each mark, and in the legend."""


class Curves(Widget):
    DEFAULT_CSS = "Curves { height: 1fr; width: 1fr; min-height: 3; }"

    def __init__(
        self,
        title: str,
        say: Callable[[float], str] = "{:.4g}".format,
        *,
        from_zero: bool = False,
        empty: str = "none yet",
        id: str | None = None,
    ) -> None:
        """say: writes a value, in the legend and beside the plot."""
        super().__init__(id=id)
        self._from_zero = from_zero
        self._title, self._say, self._empty = title, say, empty
        self._curves: tuple[Curve, ...] = ()
        self._strips: list[Strip] | None = None
        self._drawn_at = Size(0, 0)

    def show(self, curves: Sequence[Curve], title: str = "") -> None:
        """Replaces what was shown; of several lines the first lies on top."""
        self._curves = tuple(curve for curve in curves if len(curve.steps))
        self._title = title or self._title
        self._redraw()

    def on_mount(self) -> None:
        self.app.theme_changed_signal.subscribe(self, lambda theme: self._redraw())

    def notify_style_update(self) -> None:
        super().notify_style_update()
        self._strips = None

    def _redraw(self) -> None:
        self._strips = None
        self.refresh()

    def render_line(self, y: int) -> Strip:
        if self._strips is None or self._drawn_at != self.size:
            self._drawn_at, self._strips = self.size, self._draw(*self.size)
        return self._strips[y] if y < len(self._strips) else Strip.blank(self.size.width, self.rich_style)

    # -- Drawing

    def _draw(self, width: int, height: int) -> list[Strip]:
        self._styles = self._make_styles()
        lines = list(self._legend(width, max(1, min(_LEGEND_LINES, (height - 3) // 3))))
        across = bounds([curve.steps for curve in self._curves])
        up = bounds(
            [curve.values for curve in self._curves if curve.kind != "dots"],
            [curve.values for curve in self._curves if curve.kind == "dots"],
        )
        if up and self._from_zero:
            up = min(0.0, up[0]), max(0.0, up[1])
        if across and up and height > len(lines):
            lines += self._plot(width, height - len(lines), across, up)
        lines += [[] for _ in range(height - len(lines))]
        style = self.rich_style
        return [Strip(segments).adjust_cell_length(width, style).apply_style(style) for segments in lines[:height]]

    def _make_styles(self) -> list[Style]:
        """Of ink 0, faint; then a bright and a faint one of each colour."""
        ground = self.background_colors[1]
        faint = self.rich_style.color
        styles = [Style(color=faint, dim=True)]
        for place in range(6):
            color = Color.parse(series_color(self.app.theme_variables, place))
            styles.append(Style(color=color.rich_color))
            styles.append(Style(color=ground.blend(color, 0.5).rich_color))
        return styles

    def _ink(self, curve: Curve) -> int:
        return 1 + 2 * (curve.color % 6) + (curve.kind == "dots")

    def _legend(self, width: int, most_lines: int) -> Iterator[list[Segment]]:
        """`loss  ━ train 0.712  ◆ evaluation 0.840`, on several lines where there are many."""
        title = Segment(cut(self._title, width), Style(bold=True))
        line, used, lines = [title], cell_len(title.text), 0
        if not self._curves:
            line.append(Segment(cut(f"  {self._empty}", width - used), self._styles[0]))
        for curve in self._curves:
            finite = [value for value in curve.values[-1:] if math.isfinite(value)]
            value = f" {self._say(finite[0])}" if finite and curve.kind != "dots" else ""
            sign = f"  {curve.glyph or _GLYPHS[curve.kind]} " if curve.name else " "
            room = width - used - len(sign) - cell_len(value)
            if room < min(cell_len(curve.name), 8):
                if lines + 1 == most_lines:
                    break
                yield line
                line, used, lines = [], 0, lines + 1
                room = width - len(sign) - cell_len(value)
            name = cut(curve.name, room)
            line += [
                Segment(sign, self._styles[self._ink(curve)]), Segment(name), Segment(value, Style(bold=True)),
            ]  # fmt: skip
            used += len(sign) + cell_len(name) + cell_len(value)
        yield line

    def _plot(
        self, width: int, height: int, across: tuple[float, float], up: tuple[float, float]
    ) -> list[list[Segment]]:
        with_steps = height >= _WITH_STEPS
        rows = height - 2 * with_steps
        marks = self._value_marks(rows, up) if width >= _WITH_LABELS else {}
        margin = max((cell_len(text) for text in marks.values()), default=-2) + 2
        canvas = Braille(max(1, width - margin), max(1, rows))
        self._paint(canvas, across, up)
        lines = []
        for row in range(rows):
            text = marks.get(row, "")
            axis = f"{text:>{margin - 1}}{'┤' if text else '│'}" if margin else ""
            lines.append([Segment(axis, self._styles[0]), *self._cells(canvas, row)])
        if with_steps:
            lines += self._step_marks(canvas.width, margin, across)
        return lines

    def _cells(self, canvas: Braille, row: int) -> Iterator[Segment]:
        for text, ink in canvas.runs(row):
            yield Segment(text, self._styles[ink] if ink else None)

    def _paint(self, canvas: Braille, across: tuple[float, float], up: tuple[float, float]) -> None:
        left, low = across[0], up[0]
        wide = (canvas.across - 1) / (across[1] - left)
        high = (canvas.down - 1) / (up[1] - low)

        def place(curve: Curve) -> tuple[list[float], list[float]]:
            return [wide * (step - left) for step in curve.steps], [
                canvas.down - 1 - high * (value - low) for value in curve.values
            ]

        behind_to_front = [c for kind in ("dots", "line", "marks") for c in self._curves[::-1] if c.kind == kind]
        for curve in behind_to_front:
            ink, (xs, ys) = self._ink(curve), place(curve)
            if curve.kind == "dots":
                canvas.dots(xs, ys, ink)
                continue
            canvas.curve(xs, ys, ink)
            glyph = curve.glyph or (_GLYPHS["marks"] if curve.kind == "marks" else "●")
            if curve.kind == "marks" and len(xs) <= canvas.width // 4:
                marked = range(len(xs))
            elif curve.glyph or curve.kind == "marks" or len(xs) == 1:
                marked = range(len(xs) - 1, len(xs))
            else:
                continue
            for at in marked:
                if math.isfinite(ys[at]):
                    canvas.mark(round(xs[at]), round(ys[at]), glyph, ink)

    def _value_marks(self, rows: int, up: tuple[float, float]) -> dict[int, str]:
        """Row -> the number that lies in it."""
        low, high = up
        marks: dict[int, str] = {}
        for value in ticks(low, high, max(2, min(6, rows // 2))):
            dot = round((4 * rows - 1) * (high - value) / (high - low))
            text = self._say(value) if value else "0"
            if text not in marks.values():
                marks[min(rows - 1, max(0, dot >> 2))] = text
        return marks

    def _step_marks(self, width: int, margin: int, across: tuple[float, float]) -> list[list[Segment]]:
        left, right = across
        rule, text = ["─"] * width, [" "] * width
        free_from = 0
        for step in ticks(left, right, max(2, width // 12)):
            if step != round(step):
                continue
            at = round((width - 1) * (step - left) / (right - left))
            label = f"{step:,.0f}"
            start = min(width - len(label), max(0, at - len(label) // 2))
            if start < free_from or not 0 <= at < width:
                continue
            rule[at] = "┴"
            text[start : start + len(label)] = label
            free_from = start + len(label) + 1
        corner, below = (
            (" " * (margin - 1) + "└", f"{'step' if margin > 4 else '':>{margin - 1}} ") if margin else ("", "")
        )
        return [
            [Segment(corner + "".join(rule), self._styles[0])],
            [Segment(below + "".join(text[:width]), self._styles[0])],
        ]
