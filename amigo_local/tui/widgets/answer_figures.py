"""AnswerFigures: how fast an answer came and how long it is, on as many lines as the width asks for."""

from __future__ import annotations

from collections.abc import Sequence

from textual.app import RenderResult
from textual.content import Content
from textual.geometry import Size
from textual.widget import Widget

from amigo_local.domain.events import GenerationFinished
from amigo_local.domain.units import format_seconds

_BETWEEN = " · "


def figures(finished: GenerationFinished, reserved: bool = False) -> list[str]:
    """`reserved` leaves out those by which one recognizes a model: its speed, and what it took to load."""
    first, before = finished.first_token_seconds, finished.tokens_before_code
    parts = [
        "" if reserved else f"{finished.tokens_per_second:.1f} tok/s",
        f"{finished.answer_tokens:,} tok" + (" (cut off)" if finished.stop_reason == "length" else ""),
        "" if reserved or first is None else f"first {format_seconds(first)}",
        "" if before is None else "code at once" if before == 0 else f"code after {before:,} tok",
        "" if reserved else f"load {format_seconds(finished.load_seconds)}",
    ]
    return [part for part in parts if part]


class AnswerFigures(Widget):
    """Breaks between figures, never within one. Not there while there are none."""

    DEFAULT_CSS = """
    AnswerFigures { height: auto; padding: 0 1; color: $text-muted; display: none; }
    AnswerFigures.shown { display: block; }
    """

    def __init__(self) -> None:
        super().__init__()
        self._figures: Sequence[str] = ()

    def show(self, figures: Sequence[str]) -> None:
        self._figures = figures
        self.set_class(bool(figures), "shown")
        self.refresh(layout=True)

    def get_content_height(self, container: Size, viewport: Size, width: int) -> int:
        return len(self.lines(width))

    def render(self) -> RenderResult:
        return Content("\n".join(self.lines(self.content_size.width)))

    def lines(self, width: int) -> list[str]:
        lines: list[str] = []
        for figure in self._figures:
            if lines and len(lines[-1]) + len(_BETWEEN) + len(figure) <= width:
                lines[-1] += _BETWEEN + figure
            else:
                lines.append(figure)
        return lines
