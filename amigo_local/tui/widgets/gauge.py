"""Gauge: a labelled bar of how much of something is used."""

from __future__ import annotations

from textual.content import Content

from amigo_local.domain.units import format_size
from amigo_local.tui.widgets.drawn import Drawn
from amigo_local.tui.widgets.ink import cut

_BAR = 8
"""The shortest bar that shares a line with its numbers."""
_TIGHT = 0.9
"""From this share on it is coloured as nearly full."""


class Gauge(Drawn):
    """`VRAM ███████░░░ 4.1 of 6.0 GiB`; the bar has a line of its own where it is narrow."""

    DEFAULT_CSS = "Gauge { height: auto; }"

    def __init__(self, label: str, id: str | None = None) -> None:
        super().__init__(id=id)
        self._label, self._text, self._known = label, "…", False
        self._share: float | None = None

    def show(self, used: int, total: int) -> None:
        self._say(used_of(used, total), used / total if total else None)

    def show_free(self, free: int) -> None:
        self._say(f"{format_size(free)} free", None)

    def show_unknown(self, why: str) -> None:
        self._say(why, None, known=False)

    def _say(self, text: str, share: float | None, known: bool = True) -> None:
        if (text, share, known) != (self._text, self._share, self._known):
            self._text, self._share, self._known = text, share, known
            self.redraw()

    def draw(self, width: int) -> list[Content]:
        label, text = f"{self._label:<4} ", Content(cut(self._text, width - len(self._label) - 1))
        if not self._known:
            text = text.stylize("dim")
        if self._share is None:
            return [Content(label) + text]
        beside = width - len(label) - 1 - len(self._text)
        if beside >= _BAR:
            return [Content.assemble(label, self._bar(beside), " ", text)]
        return [Content(label) + text, self._bar(width)]

    def _bar(self, width: int) -> Content:
        share = min(1.0, max(0.0, self._share or 0.0))
        filled = round(width * share)
        color = "$warning" if share >= _TIGHT else "$primary"
        return Content.assemble(("█" * filled, color), ("░" * (width - filled), "dim"))


def used_of(used: int, total: int) -> str:
    """`4.1 of 6.0 GiB`; both units where they differ."""
    left, right = format_size(used), format_size(total)
    number, unit = left.split(" ")
    return f"{number} of {right}" if right.endswith(f" {unit}") else f"{left} of {right}"
