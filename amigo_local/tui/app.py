"""AmigoApp: eight screens over one session; keys, command palette, themes, failures and leaving."""

from __future__ import annotations

import asyncio
import gc
import time
from collections.abc import Iterable, Sequence
from functools import partial
from importlib import import_module
from types import ModuleType
from typing import ClassVar

from textual import events, work
from textual.app import App, SystemCommand
from textual.binding import Binding, BindingType
from textual.filter import LineFilter
from textual.screen import Screen
from textual.timer import Timer

from amigo_local.domain.errors import AmigoError
from amigo_local.domain.events import MachineMeasured, Record, RunStarted, StageFailed
from amigo_local.domain.run_state import RunState
from amigo_local.tui.safe_lines import SafeLines
from amigo_local.tui.screens.base import SCREENS, AmigoScreen
from amigo_local.tui.session import Session
from amigo_local.tui.themes import DARK, LIGHT, THEMES

STATUS_SECONDS = 2.0
NOTICE_SECONDS = 1.0
SETTLED_SECONDS = 0.004
UNDER_A_DIALOG_SECONDS = 0.5
QUIET_SECONDS = 0.5
GC_THRESHOLDS, COLLECT_SECONDS = (1000, 10, 1000), 10.0
"""To collect the oldest generation takes 20 to 200 ms: it is done when nobody types, and not by the count."""
_COLLECTED_FROM = 5
"""Collections of the middle generation, 10,000 objects each."""
DRAWN_SECONDS, HELD_SECONDS = 0.1, 0.25
"""In which a screen is, while a run's records wait; and how long they do when one follows upon the other."""
TYPED_SECONDS, HELD_BY_A_DIALOG_SECONDS = 0.3, 2.0
"""In which any key is answered; and how long records wait for keys to a dialog, whose background is drawn with them."""


def _screen_module(name: str) -> ModuleType:
    return import_module(f"amigo_local.tui.screens.{name}")


def _import_screens() -> None:
    """Those that don't show yet: the first one then paints sooner, and each of them when it is wanted."""
    for name in SCREENS:
        _screen_module(name)


class AmigoApp(App[None]):
    TITLE = "amigo-local"
    CSS = "CommandPalette SearchIcon { display: none; }"  # an emoji
    DEFAULT_MODE = "loop"
    BINDINGS: ClassVar[list[BindingType]] = [
        *(
            Binding(str(place), f"app.show_screen('{name}')", name.title(), show=False)
            for place, name in enumerate(SCREENS, start=1)
        ),
        Binding("ctrl+t", "toggle_light", "Light/dark", show=False),
        Binding("ctrl+e", "show_details", "Error details", show=False),
        Binding("ctrl+q", "quit", "Quit", priority=True),
    ]

    def __init__(self, session: Session, screen: str = "") -> None:
        super().__init__()
        self.session = session
        self._screens: dict[str, Screen[None]] = {}
        self._keyed = 0.0
        """Monotonic seconds of the last key."""
        for name in SCREENS:
            self.add_mode(name, partial(self._screen, name))
        self._making = asyncio.Lock()
        """Held while a screen is made ahead: Textual fails when it ends in the middle of that."""
        self._safe_lines = SafeLines()
        self.machine: MachineMeasured | None = None
        self.failure: StageFailed | None = None
        """The last one that was shown."""
        self._began = session.clock()
        self._held_state: RunState | None = None
        self._held: list[Record] = []
        """Records that no screen was told of yet."""
        self._telling: Timer | None = None
        self._first_screen = screen or session.saved.screen
        for theme in THEMES:
            self.register_theme(theme)
        self.theme = session.saved.theme if session.saved.theme in self.available_themes else DARK
        session.on_update = self._hear_update
        session.on_failure = self._hear_failure

    def get_line_filters(self) -> Sequence[LineFilter]:
        return [self._safe_lines, *super().get_line_filters()]

    def on_mount(self) -> None:
        if self._first_screen in SCREENS and self._first_screen != self.DEFAULT_MODE:
            self.switch_mode(self._first_screen)
        self.call_after_refresh(self._begin)

    def _begin(self) -> None:
        """What may wait until something is on the screen."""
        # What is there now stays: without it in every collection, a key never waits for one.
        gc.collect()
        gc.freeze()
        gc.set_threshold(*GC_THRESHOLDS)
        self.run_worker(self._open_session(), name="session")
        self.run_worker(self._make_screens(), name="screens")
        self.set_interval(STATUS_SECONDS, self._measure)
        self.set_interval(NOTICE_SECONDS, self.session.notice)
        self.set_interval(COLLECT_SECONDS, self._collect)

    @property
    def _quiet(self) -> bool:
        return time.monotonic() >= self._keyed + QUIET_SECONDS

    def _collect(self) -> None:
        if self._quiet and gc.get_count()[2] >= _COLLECTED_FROM:
            gc.collect()

    def _screen(self, name: str) -> Screen[None]:
        if name not in self._screens:
            self._screens[name] = _screen_module(name).SCREEN()
        return self._screens[name]

    async def _make_screens(self) -> None:
        """Ahead, while no keys come, so that each is there at once when it is first wanted."""
        await asyncio.to_thread(_import_screens)
        for name in SCREENS:
            while not self._quiet:
                await asyncio.sleep(QUIET_SECONDS / 4)
            async with self._making:
                if self._exit:
                    return
                if name not in self._screens:
                    _, made = self._get_screen(self._screen(name))
                    await made
        gc.collect()
        gc.freeze()

    async def _open_session(self) -> None:
        await self.session.warm()
        await self.session.follow_newest()
        self._measure()

    # -- The followed run and the machine, for whichever screen shows

    def _hear_update(self, state: RunState, records: list[Record]) -> None:
        """Told by a timer: an error in drawing is the app's, and ends no following. A screen that lies under a dialog
        is drawn less often, so that the dialog's keys don't wait for it."""
        self._held_state, self._held = state, self._held + records
        if self._telling is None:
            above = not isinstance(self.screen, AmigoScreen)
            self._telling = self.set_timer(UNDER_A_DIALOG_SECONDS if above else 0.01, self._tell)

    def _tell(self) -> None:
        state, held, self._held, self._telling = self._held_state, self._held, [], None
        if state:
            self._run_updated(state, held)

    def _hear_failure(self, failure: StageFailed) -> None:
        self.call_later(self.show_failure, failure)

    def _run_updated(self, state: RunState, records: list[Record]) -> None:
        for screen in self._amigo_screens():
            screen.run_updated(state, records)
        for record in records:  # what failed before this program began is in the log
            if isinstance(record.event, RunStarted) and record.time >= self._began:
                self.hide_failure()
            if isinstance(record.event, StageFailed) and record.time >= self._began:
                self.show_failure(record.event)

    def _amigo_screens(self) -> Iterable[AmigoScreen]:
        """That of the current mode, also while a dialog lies over it."""
        return [screen for screen in self.screen_stack if isinstance(screen, AmigoScreen) and screen.is_mounted]

    def _measure(self) -> None:
        if any(screen.SHOWS_MACHINE for screen in self._amigo_screens()):
            self._ask_status()

    @work(group="status", exclusive=True, exit_on_error=False)
    async def _ask_status(self) -> None:
        reply = await self.session.ask("status")
        if measured := reply.first(MachineMeasured):
            self.machine = measured
            for screen in self._amigo_screens():
                screen.machine_measured(measured)

    async def on_event(self, event: events.Event) -> None:
        if isinstance(event, events.Key):
            self._keyed = time.monotonic()
            above = not isinstance(self.screen, AmigoScreen)
            self.session.hold(TYPED_SECONDS, at_most=HELD_BY_A_DIALOG_SECONDS if above else 0.0)
        await super().on_event(event)

    # -- Failures

    def show_failure(self, failure: StageFailed | AmigoError) -> None:
        """Message and hint at once; the rest with ctrl+e."""
        if isinstance(failure, AmigoError):
            failure = StageFailed(failure.message, failure.hint, failure.exit_code)
        self.failure = failure
        for screen in self.screen_stack:
            if isinstance(screen, AmigoScreen):
                screen.show_failure(failure)

    def hide_failure(self) -> None:
        """It was of what one has left, or has begun anew."""
        for screen in self._amigo_screens():
            screen.action_hide_failure()

    def action_show_details(self) -> None:
        from amigo_local.tui.screens.details import FailureDetails

        if self.failure:
            self.push_screen(FailureDetails(self.failure))

    # -- Moving about

    def action_show_screen(self, name: str) -> None:
        if len(self.screen_stack) > 1:
            return  # a dialog wants its answer first
        self.session.saved.screen = name
        self.session.hold(DRAWN_SECONDS, at_most=HELD_SECONDS)
        self.hide_failure()
        self.switch_mode(name)

    def delay_update(self, delay: float = 0.05) -> None:
        """Textual holds a new screen back for 50 ms; ours have settled sooner (docs/measurements.md)."""
        super().delay_update(min(delay, SETTLED_SECONDS))

    def action_toggle_light(self) -> None:
        self.theme = LIGHT if self.current_theme.dark else DARK

    def watch_theme(self, theme: str) -> None:
        self.session.saved.theme = theme

    def get_system_commands(self, screen: Screen[object]) -> Iterable[SystemCommand]:
        for name, summary in SCREENS.items():
            yield SystemCommand(f"Go to {name.title()}", summary, partial(self.action_show_screen, name))
        if isinstance(screen, AmigoScreen):
            yield from screen.commands()
        yield from super().get_system_commands(screen)

    async def action_quit(self) -> None:
        """Asks first when something is going on that it began or follows; told again, it leaves that running."""
        from amigo_local.tui.screens.leaving import Leaving

        run = self.session.run
        if run and self.session.live and self.session.is_live(run.run_id) and not isinstance(self.screen, Leaving):
            self.push_screen(Leaving(run), self._leave)
        else:
            self.leave()

    def leave(self) -> None:
        """As by a key, without a question: what is going on goes on."""
        self._leave("leave")

    def _leave(self, choice: str | None) -> None:
        if choice in (None, "stay"):
            return
        self.run_worker(self._close(choice), name="leaving")

    async def _close(self, choice: str | None) -> None:
        try:
            if choice == "stop":
                self.session.command("stop")
            elif choice == "cancel":
                self.session.command("cancel")
        except AmigoError as error:
            self.show_failure(error)
            return
        await self.session.close()
        async with self._making:
            self.exit()
