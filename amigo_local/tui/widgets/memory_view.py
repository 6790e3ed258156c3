"""MemoryView: a plan's memory as stacked bars against the budget, each part with a colour and a letter."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import groupby

from textual.color import Color
from textual.content import Content

from amigo_local.domain.memory_plan import MemoryPlan, Part
from amigo_local.domain.units import format_size
from amigo_local.presentation.memory_bar import FREE, LETTERS, OVER, Resource, resources, stacked_bar
from amigo_local.tui.widgets.drawn import Drawn
from amigo_local.tui.widgets.gauge import used_of
from amigo_local.tui.widgets.ink import MUTED, cut, series_color

_WIDEST_BAR = 96
_COLUMN = 38
"""A part's name and size; two of them lie side by side where there is room."""


class MemoryView(Drawn):
    """Empty until a plan is shown. Fits 38 columns."""

    def __init__(self, *, id: str | None = None) -> None:
        super().__init__(id=id)
        self._plan: MemoryPlan | None = None

    def show(self, plan: MemoryPlan) -> None:
        self._plan = plan
        self.redraw()

    def draw(self, width: int) -> list[Content]:
        if self._plan is None:
            return []
        lines: list[Content] = []
        for place, resource in enumerate(resources(self._plan)):
            lines += [Content("")] * bool(place)
            lines += self._resource(resource, min(width, _WIDEST_BAR))
        return lines

    def _resource(self, resource: Resource, width: int) -> Iterator[Content]:
        name, parts, budget = resource
        total = sum(part.nbytes for part in parts)
        text = f"{name:<4} {used_of(total, budget)}"
        if total > budget:
            share = Content(f"! {format_size(total - budget)} over").stylize("bold $error")
        else:
            share = Content(f"{100 * total / budget:.0f} %").stylize(MUTED)
        text = cut(text, width - len(share) - 1)
        yield Content.assemble((text, "bold"), " " * (width - len(text) - len(share)), share)
        yield self._bar(stacked_bar(parts, budget, width))
        yield from self._legend(parts, width)

    def _bar(self, letters: str) -> Content:
        """A run of letters is a block in their colour with one letter in its middle."""
        pieces: list[Content] = []
        for letter, run in groupby(letters):
            length = len(list(run))
            if letter == FREE:
                pieces.append(Content(FREE * length).stylize("dim"))
            elif letter == OVER:
                pieces.append(Content(OVER * length).stylize("bold $background on $error"))
            else:
                pieces.append(Content(letter.center(length)).stylize(self._block(letter)))
        return Content("").join(pieces)

    def _block(self, letter: str) -> str:
        color = self._color(letter)
        return f"{Color.parse(color).get_contrast_text(1.0).hex6} on {color}"

    def _color(self, letter: str) -> str:
        return series_color(self.app.theme_variables, LETTERS.index(letter))

    def _legend(self, parts: tuple[Part, ...], width: int) -> Iterator[Content]:
        side_by_side = max(1, width // _COLUMN)
        column = (width - 2 * (side_by_side - 1)) // side_by_side
        cells = [self._entry(letter, part, column) for letter, part in zip(LETTERS, parts, strict=False)]
        rows = -(-len(cells) // side_by_side)
        for row in range(rows):
            yield Content("  ").join(cells[row::rows])

    def _entry(self, letter: str, part: Part, width: int) -> Content:
        size = format_size(part.nbytes)
        room = width - 4 - len(size) - 1
        name = cut(part.name, room).ljust(room)
        return Content.assemble((f" {letter} ", self._block(letter)), f" {name} ", (size, MUTED))
