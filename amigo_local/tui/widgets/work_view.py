"""WorkView: a pull, an unpacking or a registration as it goes on: each layer with its bar, speed and what is left."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from textual.content import Content

from amigo_local.domain.events import Note, Progress, Record, RunStarted, StageStarted
from amigo_local.domain.pipeline import PipelineStatus
from amigo_local.domain.run_state import RunState
from amigo_local.domain.units import format_seconds, format_size
from amigo_local.presentation.visible_text import visible
from amigo_local.tui.widgets.drawn import Drawn
from amigo_local.tui.widgets.ink import cut, fitted
from amigo_local.tui.widgets.status_signs import COLORS, GLYPHS

_MOST_LAYERS = 4
_LOW = 16
"""Lines of a terminal below which only the layer on its way is shown."""
_LABEL = 18
_AMOUNT = 22
"""`1023.9 MiB of 3.3 GiB`."""
_REST = 30
"""`1023.9 MiB/s, 59 min 59 s left`."""
_SHARE = 5
_SHORTEST_BAR, _LONGEST_BAR = 8, 40
_LEAST_SECONDS = 0.5
"""A speed from less is a guess."""


@dataclass
class Layer:
    """One thing with a known size that is on its way, since it was first heard of in this attempt."""

    label: str
    unit: str
    done: float
    total: float
    since: float
    since_done: float
    last: float

    @property
    def per_second(self) -> float | None:
        seconds = self.last - self.since
        return (self.done - self.since_done) / seconds if seconds >= _LEAST_SECONDS else None


class Layers:
    """What a run has told of its parts; `apply` takes its records in order."""

    def __init__(self) -> None:
        self.parts: dict[str, Layer] = {}
        self.doing = ""
        """What it says it does, where that has no size."""
        self.note = ""
        """The last sentence it said."""

    def apply(self, record: Record) -> None:
        event = record.event
        if isinstance(event, RunStarted | StageStarted):
            self.parts.clear()
            self.doing = self.note = ""
        elif isinstance(event, Note):
            self.note = event.text
        elif isinstance(event, Progress) and event.total:
            self._count(event, event.total, record.time)
        elif isinstance(event, Progress):
            self.doing = event.label

    def _count(self, event: Progress, total: float, at: float) -> None:
        self.doing = ""
        part = self.parts.get(event.label)
        if part is None or event.done < part.done:
            self.parts[event.label] = Layer(event.label, event.unit, event.done, total, at, event.done, at)
        else:
            part.done, part.total, part.last = event.done, total, at


class WorkView(Drawn):
    """Hidden while there is nothing to tell."""

    DEFAULT_CSS = "WorkView { display: none; padding: 0 1; background: $boost; }"

    def __init__(self) -> None:
        super().__init__()
        self._state: RunState | None = None
        self._layers = Layers()
        self._live = False

    def show(self, state: RunState | None, layers: Layers, live: bool) -> None:
        """state: None hides it."""
        self._state, self._layers, self._live = state, layers, live
        self.display = state is not None
        self.redraw()

    @property
    def text(self) -> str:
        """As it is drawn."""
        return "\n".join(line.plain for line in self.draw(self.size.width or 80)) if self._state else ""

    def draw(self, width: int) -> list[Content]:
        return list(self._lines(width)) if self._state else []

    def _lines(self, width: int) -> Iterator[Content]:
        assert self._state
        status, words = self._verdict(self._state)
        head = Content.assemble((GLYPHS[status], COLORS[status]), " ", (words, "bold"))
        yield head + Content.styled(cut(f"  {self._said()}", width - len(words) - 2), "dim")
        if not self._live:
            return
        parts = list(self._layers.parts.values())
        if self.app.size.height < _LOW:
            parts = [part for part in parts if part.done < part.total][-1:]
        if len(parts) > _MOST_LAYERS:
            yield Content.styled(f"  … and {len(parts) - _MOST_LAYERS} before", "dim")
        for part in parts[-_MOST_LAYERS:]:
            yield _line(part, width)

    def _verdict(self, state: RunState) -> tuple[PipelineStatus, str]:
        title = visible(state.title or state.verb)
        if self._live:
            return ("paused", f"{title} paused") if state.paused else ("running", title)
        if state.exit_code == 0:
            return "done", f"{title} done"
        if state.exit_code in (None, 130):
            return "cancelled", f"{title} {'was cut' if state.exit_code is None else 'cancelled'}"
        return "failed", f"{title} failed"

    def _said(self) -> str:
        if self._live:
            return visible(f"{self._layers.doing}  x cancels" if self._layers.doing else "x cancels")
        state = self._state
        if state and state.verb == "pull" and state.exit_code != 0:
            return "p goes on with it"
        return visible(self._layers.note)


def _line(part: Layer, width: int) -> Content:
    """`layer ab12cd  ██████░░░░  1.2 of 3.3 GiB  12.3 MiB/s, 2 min 05 s left`; what has no room is left out."""
    done = part.done >= part.total
    share = f"{100 * part.done / part.total:.0f} %"
    amount = fitted(_amount(part), _AMOUNT, right=True)
    bar = min(_LONGEST_BAR, width - 2 - _LABEL - 1 - 2 - _AMOUNT - 2 - _REST)
    rest = "✓" if done else _rest(part) or share
    if bar < _SHORTEST_BAR:
        rest = "✓" if done else share
        bar = min(_LONGEST_BAR, width - 2 - _LABEL - 1 - 2 - _AMOUNT - 2 - _SHARE)
    if bar < _SHORTEST_BAR:
        return Content(cut(f"  {visible(part.label)}  {_amount(part)}  {rest}", width))
    filled = round(bar * min(1.0, part.done / part.total))
    return Content.assemble(
        f"  {fitted(visible(part.label), _LABEL)} ",
        ("█" * filled, "$success" if done else "$primary"),
        ("░" * (bar - filled), "dim"),
        f"  {amount}  ",
        (rest, "$success" if done else "dim"),
    )


def _amount(part: Layer) -> str:
    if part.unit != "bytes":
        return f"{part.done:,.0f} of {part.total:,.0f} {part.unit}"
    done, total = format_size(part.done), format_size(part.total)
    same = done.split()[1] == total.split()[1]
    return f"{done.split()[0] if same else done} of {total}"


def _rest(part: Layer) -> str:
    """Empty until a speed is known."""
    rate = part.per_second
    if not rate or part.unit != "bytes":
        return ""
    return f"{format_size(rate)}/s, {format_seconds((part.total - part.done) / rate)} left"
