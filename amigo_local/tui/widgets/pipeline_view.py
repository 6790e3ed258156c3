"""PipelineView: the stages of a loop, one a line; of a chain, one line a recipe and the stages of those at work."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

from rich.cells import cell_len
from textual import events
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import VerticalScroll
from textual.content import Content
from textual.message import Message

from amigo_local.domain.pipeline import PipelineStage, PipelineStatus
from amigo_local.domain.units import format_seconds, format_size
from amigo_local.presentation.headline import headline
from amigo_local.tui.widgets.drawn import Drawn
from amigo_local.tui.widgets.ink import MUTED, cut, fitted
from amigo_local.tui.widgets.status_signs import COLORS, GLYPHS

ALL_OPEN = 14
"""A chain of so many stages or fewer shows them all."""
_FIGURE = 13
"""Sizes give way to figures, where not even so much of one is seen."""
_BAR = 10
_BEFORE, _AFTER = "for all", "at the end"
_AT_WORK: tuple[PipelineStatus, ...] = ("running", "paused", "failed")


@dataclass(frozen=True)
class Group:
    """Stages of one recipe, in their order."""

    name: str
    stages: tuple[PipelineStage, ...]

    @property
    def status(self) -> PipelineStatus:
        """The one of its stages that wants most to be seen."""
        found = {stage.status for stage in self.stages}
        if found == {"done"}:
            return "done"
        order: tuple[PipelineStatus, ...] = ("running", "paused", "failed", "cancelled", "next", "stale")
        return next((status for status in order if status in found), "waiting")

    @property
    def is_at_work(self) -> bool:
        return any(stage.status in _AT_WORK or stage.is_next for stage in self.stages)


def grouped(rows: Sequence[PipelineStage]) -> list[Group]:
    """By recipe, in the order of their first stages; what is no recipe's own comes before and after them."""
    last = max((place for place, row in enumerate(rows) if row.of), default=0)
    stages: dict[str, list[PipelineStage]] = {}
    for place, row in enumerate(rows):
        stages.setdefault(row.of or (_BEFORE if place < last else _AFTER), []).append(row)
    return [Group(name, tuple(found)) for name, found in stages.items()]


class Stages(Drawn):
    """What lies inside of PipelineView."""

    def __init__(self) -> None:
        super().__init__()
        self.rows: tuple[PipelineStage, ...] = ()
        self.is_planning = False
        self.toggled: set[str] = set()
        """Names of groups that a person opened or closed, against what would be shown."""
        self.all_open = False

    def draw(self, width: int) -> list[Content]:
        return [line for line, _, _ in self.lines(width)]

    def lines(self, width: int) -> list[tuple[Content, Group | None, PipelineStage | None]]:
        """Each line with the group that it heads, or the stage that it tells of."""
        if not self.rows:
            return [(Content("planning…").stylize(MUTED), None, None)] if self.is_planning else []
        groups = grouped(self.rows)
        lines: list[tuple[Content, Group | None, PipelineStage | None]] = []
        if len({row.of for row in self.rows if row.of}) < 2:
            return [(line, None, row) for row, line in self._told(self.rows, width, "")]
        names = max(cell_len(group.name) for group in groups)
        for group in groups:
            is_open = self.is_open(group)
            lines.append((self._head(group, width, min(names, 24), is_open), group, None))
            if is_open:
                lines += [(line, None, row) for row, line in self._told(group.stages, width, "  ")]
        return lines

    def is_open(self, group: Group) -> bool:
        if self.all_open or len(self.rows) <= ALL_OPEN:
            return group.name not in self.toggled
        return group.is_at_work != (group.name in self.toggled)

    def _head(self, group: Group, width: int, names: int, is_open: bool) -> Content:
        """`▸ stage2_context  ✓ prepare ○ train ○ evaluate`, or the signs alone where words don't fit."""
        name = Content(fitted(group.name, names)).stylize("bold" if is_open else "")
        head = Content.assemble(("▾ " if is_open else "▸ ", MUTED), name, "  ")
        if is_open:
            done = sum(stage.status == "done" for stage in group.stages)
            return head + Content(f"{done} of {len(group.stages)} done").stylize(MUTED)
        words = [
            Content.assemble((f"{GLYPHS[stage.status]} ", COLORS[stage.status]), (stage.stage, MUTED), "  ")
            for stage in group.stages
        ]
        if len(head) + sum(len(word) for word in words) - 2 <= width:
            return head + Content("").join(words)
        status = group.status
        signs = Content(" ").join(Content(GLYPHS[s.status]).stylize(COLORS[s.status]) for s in group.stages)
        return head + signs + Content(f"  {status}").stylize(MUTED)

    def _told(self, rows: Sequence[PipelineStage], width: int, indent: str) -> Iterator[tuple[PipelineStage, Content]]:
        table = _Columns.of(self.rows, width - len(indent) - 2)
        for row in rows:
            mark = Content("› " if row.is_next else "  ").stylize("bold $accent")
            yield row, Content(indent) + mark + table.line(row)
            if row.error:
                room = width - len(indent) - 4
                yield row, Content.assemble(indent, "    ", (cut(row.error.split("\n")[0], room), "$error"))


@dataclass(frozen=True)
class _Columns:
    """Widths that all rows share: what is told of each lies below what is told of the others."""

    stage: int
    word: int
    figure: int
    size: int
    time: int

    @classmethod
    def of(cls, rows: Sequence[PipelineStage], width: int) -> _Columns:
        stage, word = max(len(row.stage) for row in rows), max(len(row.status) for row in rows)
        time, size = max(len(_time(row)) for row in rows), max(len(_size(row)) for row in rows)
        most = max(cell_len(_figure(row)) for row in rows)
        most = max(most, _BAR + 5) if any(row.progress for row in rows) else most
        left = width - 2 - stage - 1 - word - 1 - (time + 1)
        if left - (size + 1) < min(most, _FIGURE):
            size = 0
        if left < min(most, _FIGURE):
            left, time = left + time + 1, 0
        return cls(stage, word, max(0, left - (size + 1 if size else 0)), size, time)

    def line(self, row: PipelineStage) -> Content:
        color = COLORS[row.status]
        quiet = row.status == "waiting"
        expected = MUTED if row.status not in ("done", "stale") else ""
        parts = [
            Content(f"{GLYPHS[row.status]} ").stylize(color),
            Content(fitted(row.stage, self.stage) + " ").stylize(MUTED if quiet else "bold"),
            Content(fitted(row.status, self.word) + " ").stylize(color),
            self._middle(row),
        ]
        parts += [Content(" " + fitted(_size(row), self.size, right=True)).stylize(expected)] if self.size else []
        parts += [Content(" " + fitted(_time(row), self.time, right=True)).stylize(expected)] if self.time else []
        return Content("").join(parts)

    def _middle(self, row: PipelineStage) -> Content:
        progress = row.progress
        if progress is None or not progress.total:
            return Content(fitted(_figure(row), self.figure))
        share = min(1.0, progress.done / progress.total)
        width = min(_BAR, self.figure - 6)
        filled = round(width * share)
        bar = [("█" * filled, "$primary"), ("░" * (width - filled), "dim")] if width > 2 else []
        text = f"{' ' if bar else ''}{100 * share:.0f} %"
        rest = self.figure - sum(len(piece) for piece, _ in bar) - len(text)
        return Content.assemble(*bar, text, " " * max(0, rest))


def _figure(row: PipelineStage) -> str:
    if row.progress:
        return f"{row.progress.label} {row.progress.done:,.0f}"
    return headline(row.stage, row.figures)


def _size(row: PipelineStage) -> str:
    return format_size(row.size_bytes) if row.size_bytes else ""


def _time(row: PipelineStage) -> str:
    """What was measured, or `~` what is expected."""
    if row.seconds is None:
        return ""
    return f"{'' if row.status in ('done', 'stale') else '~'}{format_seconds(row.seconds)}"


class PipelineView(VerticalScroll):
    """Scrolls by itself to what is at work. `e` opens or closes all recipes of a chain, a click on one opens it."""

    class Pointed(Message):
        """A stage was clicked."""

        def __init__(self, row: PipelineStage) -> None:
            super().__init__()
            self.row = row

    DEFAULT_CSS = "PipelineView { height: auto; scrollbar-size-vertical: 1; padding: 0 1; overflow-x: hidden; }"
    BINDINGS: ClassVar[list[BindingType]] = [Binding("e", "open_all", "Open all", show=False)]

    def compose(self) -> ComposeResult:
        yield Stages()

    @property
    def stages(self) -> Stages:
        return self.query_one(Stages)

    def show(self, rows: Sequence[PipelineStage]) -> None:
        stages, new = self.stages, tuple(rows)
        if new == stages.rows and not stages.is_planning:
            return
        moved = [row.status for row in new] != [row.status for row in stages.rows]
        stages.rows, stages.is_planning = new, False
        stages.redraw()
        if moved:
            self.call_after_refresh(self._show_work)

    def show_planning(self) -> None:
        self.stages.is_planning = True
        self.stages.redraw()

    def action_open_all(self) -> None:
        stages = self.stages
        stages.all_open, stages.toggled = not stages.all_open, set()
        stages.redraw()

    def on_click(self, event: events.Click) -> None:
        lines = self.stages.lines(self.stages.size.width)
        place = event.screen_y - self.stages.region.y
        if not 0 <= place < len(lines):
            return
        _, group, row = lines[place]
        if group:
            self.stages.toggled ^= {group.name}
            self.stages.redraw()
        elif row:
            self.post_message(self.Pointed(row))

    def _show_work(self) -> None:
        """So that the stage at work is in the middle of what is seen."""
        lines = self.stages.lines(self.stages.size.width)
        at = [place for place, (_, _, row) in enumerate(lines) if row and (row.status in _AT_WORK or row.is_next)]
        if at:
            self.scroll_to(y=max(0, at[0] - self.size.height // 2), animate=False)
