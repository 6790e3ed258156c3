"""RecordLog: the last records as sentences, with their time and stage; it follows its end unless scrolled up."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, NamedTuple

from rich.segment import Segment
from rich.style import Style
from textual import events
from textual.color import Color
from textual.geometry import Region, Size
from textual.scroll_view import ScrollView
from textual.strip import Strip

from amigo_local.domain.events import (
    MetricLogged,
    Note,
    Progress,
    Record,
    RunFinished,
    StageCancelled,
    StageFailed,
    StageFinished,
    StageSkipped,
)
from amigo_local.presentation.sentences import sentence
from amigo_local.presentation.visible_text import visible
from amigo_local.tui.widgets.ground import Ground
from amigo_local.tui.widgets.ink import fitted, folded

MOST_ENTRIES = 2000
_MOST_CHARACTERS = 4000
"""Of one sentence: a message can quote a whole file."""
_STAGE = 10
_ROOMY = 64
"""Narrower than this, the time is told in hours and minutes alone."""

Tone = Literal["plain", "good", "warning", "problem", "muted"]
_COLORS = {"good": "success", "warning": "warning", "problem": "error"}


@dataclass(frozen=True)
class Entry:
    time: float | None
    """Seconds since the epoch; None: it is going on."""
    stage: str
    text: str
    tone: Tone


class _Line(NamedTuple):
    """A line of an entry, as it is wrapped; it is laid out once it is in sight."""

    entry: Entry
    text: str
    is_first: bool


class RecordLog(Ground, ScrollView, can_focus=True):
    DEFAULT_CSS = """
    RecordLog {
        height: 1fr; scrollbar-size-vertical: 1; overflow-x: hidden; overflow-y: auto; scrollbar-gutter: stable;
    }
    """

    def __init__(self, *, with_stage: bool = True, most_entries: int = MOST_ENTRIES, id: str | None = None) -> None:
        super().__init__(id=id)
        self._stage_width = _STAGE + 1 if with_stage else 0
        self._entries: deque[tuple[Entry, int]] = deque()
        """With how many lines each takes."""
        self._lines: deque[_Line] = deque()
        self._most = most_entries
        self._going_on: Entry | None = None
        self._width = 0
        self._muted = Style()
        self._gone = 0
        """Lines that went at the top since it was last drawn: what one reads stays where it is."""
        self._at_end = True

    # -- What is told

    def add(self, records: Iterable[Record]) -> None:
        """All at once, however many; a Progress replaces the one before it. Metrics and what
        has no sentence are left out."""
        for record in records:
            if isinstance(record.event, Progress):
                self._going_on = Entry(None, record.stage, sentence(record.event), "muted")
            elif isinstance(record.event, MetricLogged):
                continue  # too many to read; curves show them
            elif text := sentence(record.event):
                if isinstance(record.event, StageFinished | StageFailed | StageCancelled | RunFinished):
                    self._going_on = None
                self._append(Entry(record.time, record.stage, text, tone(record)))
        self._changed()

    def show_progress(self, stage: str, progress: Progress | None) -> None:
        """The line at the end; None takes it away."""
        self._going_on = Entry(None, stage, sentence(progress), "muted") if progress else None
        self._changed()

    def clear(self) -> None:
        self._entries.clear()
        self._lines.clear()
        self._going_on, self._at_end = None, True
        self._changed()

    @property
    def texts(self) -> list[str]:
        """Every line as it is shown."""
        return [self._strip(line).text.rstrip() for line in [*self._lines, *self._tail()]]

    # -- Lines

    def _append(self, entry: Entry) -> None:
        lines = self._wrapped(entry) if self._width else []
        self._entries.append((entry, len(lines)))
        self._lines.extend(lines)
        while len(self._entries) > self._most:
            _, gone = self._entries.popleft()
            self._gone += gone
            for _ in range(gone):
                self._lines.popleft()

    @property
    def _clock_width(self) -> int:
        return 9 if self._width >= _ROOMY else 6

    def _wrapped(self, entry: Entry) -> list[_Line]:
        room = max(10, self._width - self._clock_width - self._stage_width)
        rows = folded(visible(entry.text[:_MOST_CHARACTERS]), room)
        return [_Line(entry, row, place == 0) for place, row in enumerate(rows)]

    def _strip(self, line: _Line) -> Strip:
        entry, clock, stage, before = line.entry, "", "", self._clock_width
        if line.is_first:
            stage = entry.stage
            clock = "" if entry.time is None else time.strftime("%H:%M:%S", time.localtime(entry.time))
        return Strip(
            [
                Segment(fitted(clock[: before - 1], before), self._muted),
                Segment(fitted(fitted(stage, _STAGE), self._stage_width), self._muted),
                Segment(line.text, self._tone_style(entry.tone)),
            ]
        )

    def _tone_style(self, kind: Tone) -> Style:
        if kind == "plain":
            return Style()
        if kind == "muted":
            return self._muted
        return Style(color=Color.parse(self.app.theme_variables[_COLORS[kind]]).rich_color)

    def _tail(self) -> list[_Line]:
        return self._wrapped(self._going_on)[:1] if self._going_on and self._width else []

    # -- Showing

    def render_lines(self, crop: Region) -> list[Strip]:
        self._muted = Style(color=self.background_colors[1].blend(self.colors[3], 0.6).rich_color)
        return super().render_lines(crop)

    def on_resize(self, event: events.Resize) -> None:
        if self.scrollable_content_region.width != self._width:
            self._wrap_again()
        else:
            self._changed()  # a lower one still shows its end

    def _wrap_again(self) -> None:
        self._width = self.scrollable_content_region.width
        entries, self._entries = self._entries, deque()
        self._lines.clear()
        for entry, _ in entries:
            self._append(entry)
        self._changed()

    def _changed(self) -> None:
        following, gone, self._gone = self._at_end, self._gone, 0
        self.virtual_size = Size(self._width, len(self._lines) + (self._going_on is not None))
        if following:
            self.scroll_end(animate=False, immediate=True, force=True)  # its bar may not be there yet
        elif gone:
            self.scroll_to(y=self.scroll_offset.y - gone, animate=False, immediate=True)
        self.refresh()

    def watch_scroll_y(self, old_value: float, new_value: float) -> None:
        super().watch_scroll_y(old_value, new_value)
        self._at_end = round(new_value) >= self.max_scroll_y

    def render_line(self, y: int) -> Strip:
        place = y + self.scroll_offset.y
        if place < len(self._lines):
            strip = self._strip(self._lines[place])
        else:
            tail = self._tail()
            strip = self._strip(tail[0]) if tail and place == len(self._lines) else Strip([])
        return strip.adjust_cell_length(self.size.width, self.ground).apply_style(self.ground)


def tone(record: Record) -> Tone:
    """How much a record wants to be seen."""
    match record.event:
        case StageFailed():
            return "problem"
        case StageCancelled():
            return "warning"
        case Note(level="warning"):
            return "warning"
        case Note(level="problem"):
            return "problem"
        case Note(level="good") | StageFinished():
            return "good"
        case StageSkipped():
            return "muted"
        case _:
            return "plain"
