"""ScreenBar: the names of all screens with their keys, and how far the followed run is."""

from __future__ import annotations

from collections.abc import Sequence

from textual import events
from textual.app import ComposeResult
from textual.containers import Horizontal
from textual.content import Content
from textual.message import Message
from textual.widgets import Static

from amigo_local.domain.run_state import RunState

_ROOMY = 100
"""Columns that the names leave room in for more than a sign."""


class ScreenName(Static):
    """One of the names; a click goes there."""

    class Chosen(Message):
        def __init__(self, name: str) -> None:
            super().__init__()
            self.name = name

    def __init__(self, name: str, key: int, active: bool) -> None:
        super().__init__(
            Content.from_markup("[$accent]$key[/] $title", key=str(key), title=name.title()),
            classes="active" if active else "",
        )
        self.screen_name = name

    def on_click(self, event: events.Click) -> None:
        event.stop()
        self.post_message(self.Chosen(self.screen_name))


class ScreenBar(Horizontal):
    DEFAULT_CSS = """
    ScreenBar {
        dock: top; height: 1; background: $panel;
        ScreenName { width: auto; padding: 0 1; color: $text-muted; }
        ScreenName:hover { background: $boost; }
        ScreenName.active { background: $primary 30%; color: $text; text-style: bold; }
        #run {
            width: 1fr; text-align: right; padding: 0 1; color: $text-muted;
            text-wrap: nowrap; text-overflow: ellipsis;
        }
        &.tight ScreenName { padding: 0 1 0 0; }
        &.tight #run { padding: 0; }
    }
    """

    def __init__(self, names: Sequence[str], active: str) -> None:
        super().__init__()
        self._names, self._active = names, active
        self._run: tuple[RunState, bool] | None = None

    def compose(self) -> ComposeResult:
        for key, name in enumerate(self._names, start=1):
            yield ScreenName(name, key, name == self._active)
        yield Static("", id="run")

    def on_screen_name_chosen(self, message: ScreenName.Chosen) -> None:
        message.stop()
        self.call_later(self.app.run_action, f"app.show_screen('{message.name}')")

    def on_resize(self, event: events.Resize) -> None:
        self.set_class(event.size.width < _ROOMY, "tight")
        self._draw_run()

    def show_run(self, state: RunState, live: bool) -> None:
        self._run = state, live
        self._draw_run()

    def _draw_run(self) -> None:
        if self._run:
            state, live = self._run
            text = run_sign(state, live) if self.has_class("tight") else run_line(state, live)
            self.query_one("#run", Static).update(Content(text), layout=False)  # its width is what is left


def run_sign(state: RunState, live: bool) -> str:
    """The same in a few cells: `▶ 34 %`."""
    share = _share(state)
    return f"▶ {share}" if share and live and not state.paused else run_line(state, live)[:1]


def _share(state: RunState) -> str:
    """Of the stage that runs; while a training is evaluated, that evaluation's is none of it."""
    stage = state.running
    progress = stage.progress if stage else None
    if not stage or not progress or not progress.total or (stage.stage == "train" and progress.unit != "steps"):
        return ""
    return f"{100 * progress.done / progress.total:.0f} %"


def run_line(state: RunState, live: bool) -> str:
    """`▶ train 34 %`: the shortest that tells where it is."""
    stage = state.running
    if stage and live:
        return f"‖ {stage.stage} paused" if state.paused else f"▶ {stage.stage} {_share(state)}".rstrip()
    if live:
        return f"▶ {state.verb}"
    if state.exit_code == 0:
        return f"✓ {state.verb} done"
    if state.exit_code == 130:
        return f"■ {state.verb} cancelled"
    if state.exit_code is not None:
        return f"✗ {state.verb} failed"
    return f"■ {state.verb} was cut" if state.verb else ""
