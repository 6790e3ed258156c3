"""RowList: lines of cells under headings, with a cursor; only what is seen is drawn.

Textual's DataTable took 0.7 s for 5,000 rows of 7 cells, without answering a key meanwhile.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from rich.segment import Segment
from rich.style import Style
from textual import events
from textual.binding import Binding, BindingType
from textual.geometry import Size
from textual.message import Message
from textual.reactive import reactive
from textual.scroll_view import ScrollView
from textual.strip import Strip

from amigo_local.tui.widgets.ground import Ground
from amigo_local.tui.widgets.ink import fitted

_GAP = 2
_NARROWEST = 8
"""Of a column of text that gives way to the others."""


@dataclass(frozen=True)
class Heading:
    name: str
    right: bool
    """Set right-aligned, and never cut."""
    widest: int
    """Cells that its longest text takes."""


class RowList(Ground, ScrollView, can_focus=True):
    """Gets texts, tells places. The headings stay while the rows scroll."""

    DEFAULT_CSS = """
    RowList {
        height: 1fr; scrollbar-size-vertical: 1; scrollbar-size-horizontal: 1;
        & > .row-list--heading { color: $text-muted; text-style: bold; background: $panel; }
        & > .row-list--cursor { background: $primary 18%; }
        & > .row-list--quiet { color: $text-muted; }
        &:focus > .row-list--cursor { background: $primary 38%; text-style: bold; }
    }
    """
    COMPONENT_CLASSES: ClassVar[set[str]] = {"row-list--heading", "row-list--cursor", "row-list--quiet"}
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("enter", "choose", "Choose", show=False),
        Binding("up,k", "move(-1)", "Up", show=False),
        Binding("down,j", "move(1)", "Down", show=False),
        Binding("pageup", "page(-1)", "Page up", show=False),
        Binding("pagedown", "page(1)", "Page down", show=False),
        Binding("home", "first", "First", show=False),
        Binding("end", "last", "Last", show=False),
        Binding("left", "scroll_left", "Left", show=False),
        Binding("right", "scroll_right", "Right", show=False),
    ]

    class Moved(Message):
        """The cursor is elsewhere."""

    class Chosen(Message):
        """Enter, or a click on the row under the cursor."""

    class HeadingClicked(Message):
        def __init__(self, column: int) -> None:
            super().__init__()
            self.column = column

    cursor: reactive[int] = reactive(0)

    def __init__(self) -> None:
        super().__init__()
        self.headings: tuple[Heading, ...] = ()
        self.rows: Sequence[Sequence[str]] = ()
        self.quiet = "—"
        """A cell of this text is set faint."""
        self._marks: dict[int, str] = {}
        self._widths: list[int] = []

    def show(self, headings: Sequence[Heading], rows: Sequence[Sequence[str]], marks: dict[int, str], at: int) -> None:
        """marks: column -> the sign behind its heading. at: where the cursor goes."""
        self.headings, self.rows, self._marks = tuple(headings), rows, marks
        self._lay_out()
        self.set_reactive(RowList.cursor, max(0, min(at, len(rows) - 1)))
        self._keep_in_sight()
        self.refresh()

    # -- Widths

    def on_resize(self) -> None:
        self._lay_out()
        self._keep_in_sight()

    def _lay_out(self) -> None:
        """Numbers have all they need; columns of text share the rest, the longest giving way first."""
        widths = [max(h.widest, len(h.name) + len(self._marks.get(i, ""))) for i, h in enumerate(self.headings)]
        texts = [place for place, heading in enumerate(self.headings) if not heading.right]
        over = sum(widths) + _GAP * max(0, len(widths) - 1) + 2 - self.scrollable_content_region.width
        while over > 0 and texts:
            longest = max(texts, key=lambda place: widths[place])
            if widths[longest] <= _NARROWEST:
                break
            second = max((widths[place] for place in texts if widths[place] < widths[longest]), default=_NARROWEST)
            given = min(over, widths[longest] - max(_NARROWEST, second), widths[longest]) or 1
            widths[longest] -= given
            over -= given
        self._widths = widths
        width = sum(widths) + _GAP * max(0, len(widths) - 1) + 2
        self.virtual_size = Size(width, len(self.rows) + 1)

    def is_cut(self, column: int, text_width: int) -> bool:
        return text_width > self._widths[column]

    # -- The cursor

    def validate_cursor(self, cursor: int) -> int:
        return max(0, min(cursor, len(self.rows) - 1))

    def watch_cursor(self) -> None:
        self._keep_in_sight()
        self.refresh()
        self.post_message(self.Moved())

    def _keep_in_sight(self) -> None:
        if self.rows and self.size.height > 1:
            top = self.scroll_offset.y
            if self.cursor < top:
                self.scroll_to(y=self.cursor, animate=False, immediate=True)
            elif self.cursor >= top + self.size.height - 1:
                self.scroll_to(y=self.cursor - self.size.height + 2, animate=False, immediate=True)

    def action_move(self, by: int) -> None:
        self.cursor += by

    def action_page(self, by: int) -> None:
        self.cursor += by * max(1, self.size.height - 2)

    def action_first(self) -> None:
        self.cursor = 0

    def action_last(self) -> None:
        self.cursor = len(self.rows) - 1

    def action_choose(self) -> None:
        if self.rows:
            self.post_message(self.Chosen())

    def on_click(self, event: events.Click) -> None:
        place = event.get_content_offset(self)
        if place is None:
            return
        if place.y == 0:
            column = self._column_at(place.x + self.scroll_offset.x)
            if column is not None:
                self.post_message(self.HeadingClicked(column))
            return
        row = place.y - 1 + self.scroll_offset.y
        if row < len(self.rows):
            if row == self.cursor:
                self.action_choose()
            self.cursor = row

    def _column_at(self, x: int) -> int | None:
        start = 1
        for column, width in enumerate(self._widths):
            if start <= x < start + width + _GAP:
                return column
            start += width + _GAP
        return None

    # -- Drawing

    def render_line(self, y: int) -> Strip:
        left, top = self.scroll_offset
        width = self.size.width
        if y == 0:
            style = self.get_component_rich_style("row-list--heading")
            names = [h.name + self._marks.get(i, "") for i, h in enumerate(self.headings)]
            return self._line(names, style).crop_extend(left, left + width, style)
        row = top + y - 1
        if row >= len(self.rows):
            return Strip.blank(width, self.ground)
        style = self.ground
        if row == self.cursor:
            style = style + self.get_component_rich_style("row-list--cursor")
        return self._line(self.rows[row], style).crop_extend(left, left + width, style)

    def _line(self, texts: Sequence[str], style: Style) -> Strip:
        segments = [Segment(" ", style)]
        quiet = style + Style(color=self.get_component_rich_style("row-list--quiet").color)
        for column, (heading, text) in enumerate(zip(self.headings, texts, strict=True)):
            if column:
                segments.append(Segment(" " * _GAP, style))
            shown = fitted(text, self._widths[column], heading.right)
            segments.append(Segment(shown, quiet if text == self.quiet else style))
        return Strip(segments)
