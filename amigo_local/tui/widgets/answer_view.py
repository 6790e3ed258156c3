"""AnswerView: one model's answer as it streams, as Markdown, with its name and its figures above it."""

from __future__ import annotations

import asyncio
import textwrap
import time
from collections import deque
from dataclasses import dataclass, field
from typing import ClassVar, Literal

from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Vertical, VerticalScroll
from textual.content import Content
from textual.widgets import Static

from amigo_local.domain.code_start import find_code
from amigo_local.domain.events import GenerationFinished
from amigo_local.evaluation.extraction import fenced_texts
from amigo_local.presentation.visible_text import visible
from amigo_local.tui.widgets.answer_cutting import AnswerCutting, PartText
from amigo_local.tui.widgets.answer_figures import AnswerFigures, figures
from amigo_local.tui.widgets.answer_markdown import prepare_highlighting
from amigo_local.tui.widgets.answer_part import AnswerPart

DRAWN_CHARACTERS = 300_000
"""Of longer answers the last so many: a screen that holds more takes long to lay out."""
REDRAW_SECONDS = 0.04
"""Between two redraws; more when they take long, so that keys get most of the time."""
PARTS_AT_ONCE = 4

State = Literal["", "waiting", "failed", "cancelled"]
_MARKS: dict[State, str] = {"": "", "waiting": "○ ", "failed": "✗ ", "cancelled": "■ "}


@dataclass(eq=False)
class _Part:
    """A part of the answer, and what draws it."""

    joined: bool
    waiting: list[str] = field(default_factory=list)
    size: int = 0
    widget: AnswerPart | None = None
    dropped: bool = False


class AnswerScroll(VerticalScroll):
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("home", "scroll_home", "Top", show=False),
        Binding("end", "scroll_end", "End", show=False),
    ]

    @property
    def follows(self) -> bool:
        """Whether it keeps to the end as text comes."""
        return not self._anchor_released


class AnswerView(Vertical):
    """Follows the end while the end is in sight, and stays put when one has scrolled up."""

    DEFAULT_CSS = """
    AnswerView {
        border: round $border; border-title-color: $primary; border-title-style: bold;
        &:focus-within { border: round $primary; }
        .state, .undrawn { height: auto; max-height: 4; padding: 0 1; color: $text-muted; display: none; }
        .undrawn { text-style: italic; }
        .state.failed { color: $text-error; }
        .shown { display: block; }
        AnswerScroll { height: 1fr; scrollbar-size-vertical: 1; }
        .parts { height: auto; min-height: 100%; }  /* less than a pane full, anchoring would scroll to above the top */
    }
    """

    def __init__(self, id: str | None = None) -> None:
        super().__init__(id=id)
        self.finished: GenerationFinished | None = None
        self._came: list[str] = []
        self._cutting = AnswerCutting()
        self._parts: deque[_Part] = deque()
        self._undrawn = 0
        self._reserved = False
        self._news = asyncio.Event()
        self._drawn = asyncio.Event()
        self._drawn.set()

    def compose(self) -> ComposeResult:
        yield AnswerFigures()
        yield Static(classes="state")
        with AnswerScroll(), Vertical(classes="parts"):
            yield Static(classes="undrawn")

    def on_mount(self) -> None:
        self._scroll.anchor()
        self.run_worker(self._draw_on(), group="drawing")
        self.run_worker(prepare_highlighting, thread=True)

    # -- What the answer is

    @property
    def text(self) -> str:
        """All of it, as it came."""
        self._came = ["".join(self._came)]
        return self._came[0]

    def code(self) -> tuple[str, ...]:
        """Each fenced block's code, also of one that is cut; of an answer without fences what begins like code."""
        blocks = tuple(textwrap.dedent(block) for block in fenced_texts(self.text))
        if blocks or (start := find_code(self.text).found_at) is None:
            return blocks
        return (self.text[start:],)

    async def drawn(self) -> None:
        """Returns when everything that came so far is on its way to the screen."""
        await self._drawn.wait()

    def focus_text(self) -> None:
        self._scroll.focus()

    # -- What it is told

    def show_model(self, name: str, reserved: bool = False) -> None:
        """`reserved`: the name is a pretence, and what would give the model away stays hidden."""
        self.border_title = Content(name)
        self._reserved = reserved
        self._show_figures()

    def say(self, text: str, state: State = "") -> None:
        """A line about how it stands; empty: none."""
        line = self.query_one(".state", Static)
        line.update(Content(f"{_MARKS[state]}{text}"))
        line.set_class(bool(text), "shown").set_class(state == "failed", "failed")

    def append(self, text: str) -> None:
        """The next piece. It is drawn with others that come at about the same time."""
        if not text:
            return
        self._came.append(text)
        self._take(self._cutting.feed(visible(text)))

    def finish(self, finished: GenerationFinished | None = None) -> None:
        """The answer is whole, or none of it comes any more when nothing is given."""
        self._take(self._cutting.finish())
        self.finished = finished
        self._show_figures()

    def clear(self) -> None:
        for part in self._parts:
            self._drop(part)
        self._came, self._undrawn = [], 0
        self._cutting, self.finished = AnswerCutting(), None
        self._parts.clear()
        self._show_undrawn()
        self._show_figures()
        self.say("")
        self._scroll.anchor()

    # -- Drawing

    @property
    def _scroll(self) -> AnswerScroll:
        return self.query_one(AnswerScroll)

    def _take(self, texts: list[PartText]) -> None:
        for piece in texts:
            if piece.opens:
                self._parts.append(_Part(piece.joined))
            self._parts[-1].waiting.append(piece.text)
            self._parts[-1].size += len(piece.text)
        if texts:
            self._drawn.clear()
            self._news.set()

    async def _draw_on(self) -> None:
        while True:
            await self._news.wait()
            self._news.clear()
            while True:
                began = time.monotonic()
                self._forget_the_first()
                if not (waiting := [part for part in self._parts if part.waiting][:PARTS_AT_ONCE]):
                    break
                await self._draw(waiting)
                self._rest_out_of_sight()
                painted = asyncio.Event()
                self.call_after_refresh(painted.set)
                await painted.wait()
                await asyncio.sleep(max(REDRAW_SECONDS, 2 * (time.monotonic() - began)))
            self._drawn.set()

    async def _draw(self, parts: list[_Part]) -> None:
        fresh: list[AnswerPart] = []
        width = self._scroll.scrollable_content_region.width
        for part in parts:
            text, part.waiting = "".join(part.waiting), []
            if part.widget:
                part.widget.append(text)
            else:
                part.widget = AnswerPart(text, part.joined)
                fresh.append(part.widget)
            part.widget.set_for(width)
            await asyncio.sleep(0)  # keys in between
        await self.query_one(".parts").mount(*fresh)
        for part in parts:
            if part.dropped and part.widget:  # while it was being mounted
                part.widget.remove()

    def _forget_the_first(self) -> None:
        """Of an answer that is longer than can be drawn without keys having to wait."""
        size = sum(part.size for part in self._parts)
        gone = 0
        while len(self._parts) > 1 and size - self._parts[0].size >= DRAWN_CHARACTERS:
            part = self._parts.popleft()
            size -= part.size
            self._undrawn += part.size
            gone += part.widget.outer_size.height if part.widget else 0
            self._drop(part)
        if gone and not self._scroll.follows:
            self._scroll.scroll_to(y=self._scroll.scroll_y - gone, animate=False)
        self._show_undrawn()

    def _rest_out_of_sight(self) -> None:
        top = self._scroll.scroll_offset.y
        bottom = top + self._scroll.size.height
        for part in list(self._parts)[:-PARTS_AT_ONCE]:
            if part.widget and not (
                part.widget.virtual_region.y <= bottom and part.widget.virtual_region.bottom >= top
            ):
                part.widget.rest()

    def _drop(self, part: _Part) -> None:
        part.dropped, part.waiting = True, []
        if part.widget:
            part.widget.remove()

    def _show_undrawn(self) -> None:
        line = self.query_one(".undrawn", Static)
        if self._undrawn:
            line.update(f"… about {self._undrawn:,} characters above are not drawn; copying takes all of them")
        line.set_class(bool(self._undrawn), "shown")

    def _show_figures(self) -> None:
        self.query_one(AnswerFigures).show(figures(self.finished, self._reserved) if self.finished else [])
