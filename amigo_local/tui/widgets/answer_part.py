"""AnswerPart: one part of an answer on the screen; only the last of them changes as text comes."""

from __future__ import annotations

from textual.content import Content
from textual.css.styles import RulesMap
from textual.geometry import Size
from textual.selection import Selection
from textual.strip import Strip
from textual.style import Style
from textual.visual import RenderOptions
from textual.widget import Widget

from amigo_local.tui.widgets.answer_markdown import AnswerMarkdown
from amigo_local.tui.widgets.ground import Ground

_PADDING = 1
_NOT_WRAPPED: RulesMap = {"text_wrap": "nowrap", "text_overflow": "clip"}


class AnswerPart(Ground, Widget):
    """Markdown set for the width that there is; of its lines only those in sight are drawn."""

    DEFAULT_CSS = """
    AnswerPart {
        height: auto; padding: 0 1; margin-top: 1;
        &.joined { margin-top: 0; }
    }
    """

    def __init__(self, text: str, joined: bool) -> None:
        super().__init__(classes="joined" if joined else "")
        self._text = text
        self._markdown: AnswerMarkdown | None = None
        self._set: tuple[int, list[Content]] = (0, [])
        """For which width, and the lines."""
        self._height = (0, 0)
        """For which width, and how many lines."""

    def append(self, text: str) -> None:
        self._text += text
        self._height = (0, 0)
        self.rest()
        self.refresh(layout=True)

    def rest(self) -> None:
        """Keeps only its text and height: thousands of pieces of styled text make garbage collection take long."""
        self._markdown, self._set = None, (0, [])

    def lines(self, width: int) -> list[Content]:
        self._markdown = self._markdown or AnswerMarkdown(self._text)
        if self._set[0] != width:
            self._set = (width, self._markdown.lines(width))
            self._height = (width, len(self._set[1]))
        return self._set[1]

    def set_for(self, container_width: int) -> None:
        """Does ahead what laying it out needs."""
        self.lines(max(1, container_width - 2 * _PADDING))

    def get_content_height(self, container: Size, viewport: Size, width: int) -> int:
        if width and self._height[0] != width:
            self.lines(width)
        return self._height[1] if width else 0

    def render_line(self, y: int) -> Strip:
        width = self.content_size.width
        lines = self.lines(width) if width else []
        if y >= len(lines):
            return Strip.blank(width, self.ground)
        line = lines[y]
        if (selection := self.text_selection) and (span := selection.get_span(y)):
            chosen = Style.from_styles(self.screen.get_component_styles("screen--selection"))
            line = line.stylize(chosen, span[0], len(line.plain) if span[1] == -1 else span[1])
        strip, *_ = line.render_strips(width, 1, self.visual_style, RenderOptions(self._get_style, _NOT_WRAPPED))
        return strip.adjust_cell_length(width, self.ground).apply_offsets(0, y)

    def get_selection(self, selection: Selection) -> tuple[str, str] | None:
        text = "\n".join(line.plain.rstrip() for line in self.lines(self.content_size.width))
        return selection.extract(text), "\n"
