"""EvaluationForm: which models are asked what, and how much of it; it tells what is to change and changes nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar, Literal

from textual import events
from textual.binding import Binding, BindingType
from textual.content import Content
from textual.message import Message

from amigo_local.domain.recipe import Suite
from amigo_local.presentation.visible_text import visible
from amigo_local.tui.widgets.drawn import Drawn
from amigo_local.tui.widgets.ink import MUTED, cut, fitted, folded

How = Literal["toggle", "more", "less", "remove"]
_NAMES = {"first model": "m chooses it", "second model": "r adds one to compare"}
_LABEL = 16
_HELP_LINES = 2


class EvaluationForm(Drawn, can_focus=True):
    """Rows are called `model 0`, `model 1`, a suite's name, `problems` and `tokens`."""

    class Acted(Message):
        """Something is to be done with a row."""

        def __init__(self, row: str, how: How) -> None:
            super().__init__()
            self.row, self.how = row, how

    class Submitted(Message):
        """Enter: begin."""

    DEFAULT_CSS = "EvaluationForm { padding: 0 1; }"
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("enter", "submit", "Start"),
        Binding("space", "act('toggle')", "Choose"),
        Binding("home", "first", show=False),
        Binding("end", "last", show=False),
        Binding("up,k", "move(-1)", show=False),
        Binding("down,j", "move(1)", show=False),
        Binding("right,plus", "act('more')", show=False),
        Binding("left,minus", "act('less')", show=False),
        Binding("backspace,delete", "act('remove')", show=False),
    ]

    def __init__(self, suites: Mapping[Suite, str]) -> None:
        """suites: name -> what it asks."""
        super().__init__()
        self._suites = suites
        self.rows = ["model 0", "model 1", *suites, "problems", "tokens"]
        self.cursor = 0
        self._models: Sequence[str] = ()
        self._chosen: Sequence[str] = ()
        self._problems = self._tokens = ""

    def show(self, models: Sequence[str], chosen: Sequence[str], problems: str, tokens: str) -> None:
        """models: as they are called. problems, tokens: what stands in their rows."""
        self._models, self._chosen, self._problems, self._tokens = models, chosen, problems, tokens
        self.redraw()

    @property
    def row(self) -> str:
        return self.rows[self.cursor]

    # -- Drawing

    def draw(self, width: int) -> list[Content]:
        return [line for _, line in self._lines(width)]

    def _lines(self, width: int) -> list[tuple[str, Content]]:
        """Each with the row it belongs to."""
        lines = [("", Content.styled("Models", "bold"))]
        for place, (label, missing) in enumerate(_NAMES.items()):
            name = visible(self._models[place]) if place < len(self._models) else missing
            known = place < len(self._models)
            lines.append(self._line(f"model {place}", fitted(label, _LABEL) + name, width, faint=not known))
        lines.append(("", Content.styled("Suites", "bold")))
        for suite, asks in self._suites.items():
            mark = "[x]" if suite in self._chosen else "[ ]"
            lines.append(
                self._line(suite, f"{mark} {fitted(suite, 11)} {asks}", width, faint=suite not in self._chosen)
            )
        lines.append(("", Content.styled("How much", "bold")))
        off = "humaneval" not in self._chosen
        lines.append(self._line("problems", fitted("problems", _LABEL) + self._problems, width, faint=off))
        lines.append(self._line("tokens", fitted("longest answer", _LABEL) + self._tokens, width))
        told = [cut(line, width) for line in folded(self._help(), max(1, width))] if self.has_focus else []
        told = (told + [""] * _HELP_LINES)[: max(_HELP_LINES, len(told))]
        return lines + [("", Content.styled(line, MUTED)) for line in told]

    def _line(self, row: str, text: str, width: int, faint: bool = False) -> tuple[str, Content]:
        pointed = self.has_focus and row == self.row
        text = fitted(("▸ " if pointed else "  ") + text, width)
        style = "$foreground on $primary 30%" if pointed else MUTED if faint else ""
        return row, Content.styled(text, style) if style else Content(text)

    def _help(self) -> str:
        if self.row.startswith("model"):
            return "space chooses it" + (", backspace leaves it out" if self.row == "model 1" else "")
        if self.row in self._suites:
            return "space takes it in or leaves it out"
        return "left and right: fewer or more; space types a number"

    def on_focus(self) -> None:
        self.redraw()

    def on_blur(self) -> None:
        self.redraw()

    # -- Keys

    def action_move(self, by: int) -> None:
        self.cursor = (self.cursor + by) % len(self.rows)
        self.redraw()

    def action_first(self) -> None:
        self.cursor = 0
        self.redraw()

    def action_last(self) -> None:
        self.cursor = len(self.rows) - 1
        self.redraw()

    def action_act(self, how: How) -> None:
        self.post_message(self.Acted(self.row, how))

    def action_submit(self) -> None:
        self.post_message(self.Submitted())

    def on_click(self, event: events.Click) -> None:
        offset = event.get_content_offset(self)
        lines = self._lines(self.size.width)
        row = lines[offset.y][0] if offset and offset.y < len(lines) else ""
        if row:
            self.cursor = self.rows.index(row)
            self.redraw()
            self.action_act("toggle")
