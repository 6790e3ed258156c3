"""SafeLines: nothing that is drawn, whoever wrote it, steers the terminal."""

from __future__ import annotations

from rich.segment import Segment
from textual.color import Color
from textual.filter import LineFilter

from amigo_local.presentation.visible_text import without_controls


class SafeLines(LineFilter):
    """Textual lets escape and the C1 controls through. This is the one place that every line passes, be it a title, a
    file's name or a message; widgets that show them as signs have done so before."""

    def apply(self, segments: list[Segment], background: Color) -> list[Segment]:
        return [
            segment if segment.control else Segment(without_controls(segment.text), segment.style)
            for segment in segments
        ]
