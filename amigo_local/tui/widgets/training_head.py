"""TrainingHead and TrainingFacts: where a training is, and its figures."""

from __future__ import annotations

from collections.abc import Sequence

from rich.cells import cell_len
from textual.content import Content

from amigo_local.presentation.training import Standing
from amigo_local.tui.widgets.drawn import Drawn
from amigo_local.tui.widgets.ink import MUTED, cut, fitted
from amigo_local.tui.widgets.status_signs import COLORS, GLYPHS

_BAR = 12
"""The shortest bar that is worth a place."""


class TrainingHead(Drawn):
    """`▶ running  stage1_nl_to_code  ██████░░░░░░ 30 %  180 of 601 steps  9 h 07 min to go`"""

    def __init__(self) -> None:
        super().__init__()
        self._whose, self._text = "", ""
        self._standing: Standing | None = None

    def show(self, name: str, standing: Standing) -> None:
        if (name, standing) != (self._whose, self._standing):
            self._whose, self._standing = name, standing
            self.redraw()

    def say(self, text: str) -> None:
        """Instead of a training."""
        if self._standing is not None or text != self._text:
            self._standing, self._text = None, text
            self.redraw()

    def draw(self, width: int) -> list[Content]:
        standing = self._standing
        if standing is None:
            return [Content(cut(self._text, width)).stylize(MUTED)]
        status = standing.status
        head = Content(f"{GLYPHS[status]} {status}").stylize(f"bold {COLORS[status]}")
        share = "" if standing.share is None else f"{100 * standing.share:.0f} %"
        after = "  ".join(text for text in (share, standing.text, standing.remaining) if text)
        room = width - len(head) - cell_len(after) - 4
        name = cut(self._whose, max(0, room))
        bar = room - cell_len(name) - 2
        if standing.share is None or bar < _BAR:
            line = Content.assemble(head, "  ", (name, "bold"), "  ", after)
            return [line if line.cell_length <= width else Content(cut(str(line), width))]
        filled = round(bar * min(1.0, standing.share))
        drawn = Content.assemble(("█" * filled, COLORS[status]), ("░" * (bar - filled), "dim"))
        return [Content.assemble(head, "  ", (name, "bold"), "  ", drawn, "  ", after)]


class TrainingFacts(Drawn):
    """Each fact with a line of its own, or one after the other."""

    def __init__(self, *, as_list: bool, id: str | None = None) -> None:
        super().__init__(id=id)
        self._as_list = as_list
        self._facts: tuple[tuple[str, str], ...] = ()

    def show(self, facts: Sequence[tuple[str, str]]) -> None:
        if tuple(facts) != self._facts:
            self._facts = tuple(facts)
            self.redraw()

    def draw(self, width: int) -> list[Content]:
        if self._as_list:
            labels = max((cell_len(label) for label, _ in self._facts), default=0) + 2
            return [
                Content.assemble((fitted(label, labels), MUTED), cut(text, width - labels))
                for label, text in self._facts
            ]
        lines, used = [Content("")], 0
        for label, text in self._facts:
            told = Content.assemble((f"{label} ", MUTED), cut(text, width - len(label) - 1))
            if used and used + 3 + told.cell_length > width:
                lines, used = [*lines, Content("")], 0
            lines[-1] += Content("   " if used else "") + told
            used = lines[-1].cell_length
        return lines
