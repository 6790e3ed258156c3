"""AmigoScreen: what all screens have: the bar of screens above, failures and keys below, and hooks for what is new."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, ClassVar, cast

from textual import events
from textual.app import ComposeResult, SystemCommand
from textual.binding import Binding, BindingType
from textual.screen import Screen
from textual.widgets import Input, TextArea

from amigo_local.domain.errors import AmigoError
from amigo_local.domain.events import MachineMeasured, Record, StageFailed
from amigo_local.domain.run_state import RunState
from amigo_local.engine.control import Command
from amigo_local.tui.whereabouts import screen_for
from amigo_local.tui.widgets.failure_bar import FailureBar
from amigo_local.tui.widgets.key_footer import KeyFooter
from amigo_local.tui.widgets.screen_bar import ScreenBar

if TYPE_CHECKING:
    from amigo_local.tui.app import AmigoApp
    from amigo_local.tui.session import Session

SCREENS = {
    "loop": "The whole loop of a recipe, stage by stage",
    "models": "Ollama's tags and our artifacts: pull, unpack, register, remove",
    "recipe": "Settings, and what they need of this machine",
    "train": "Loss, speed, memory, checkpoints of a training",
    "compare": "Two models side by side, and votes",
    "evaluate": "Suites, old against refined",
    "runs": "What was run, resume it, free disk",
    "doctor": "What this machine can do, and what to mend",
}
"""Name (also of its file, and its title) -> what it is for, in the order of their keys 1 to 8."""


class AmigoScreen(Screen[None]):
    """A screen gives its `NAME` and `body`. Hooks do nothing here."""

    NAME = ""
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape", "leave_field", "Leave field"),
        Binding("escape", "hide_failure", "Dismiss", show=False),
    ]
    SHOWS_MACHINE = False
    """Whether it wants to hear of the machine: asking wakes a graphics card that sleeps."""

    def __init__(self) -> None:
        super().__init__()
        # Textual makes the styles of all that is shown anew, twice, for a screen that doesn't know of the theme in use.
        self._css_update_count = self.app._css_update_count
        self._styled_for = self.app.theme
        """Styles are made anew for another theme only."""
        self._failure: StageFailed | None = None
        """One that came before there was a place to show it."""

    @property
    def amigo(self) -> AmigoApp:
        return cast("AmigoApp", self.app)

    @property
    def session(self) -> Session:
        return self.amigo.session

    def compose(self) -> ComposeResult:
        yield ScreenBar([*SCREENS], self.NAME)
        yield from self.body()
        yield FailureBar()
        yield KeyFooter()

    def _compositor_refresh(self) -> None:
        """Textual draws a whole screen also where it then throws it away, as it does when a screen is changed."""
        if not self.app._batch_count:
            super()._compositor_refresh()

    def body(self) -> ComposeResult:
        """What lies between the bar of screens and the footer."""
        yield from ()

    def on_mount(self) -> None:
        if self._failure:
            self.show_failure(self._failure)

    def on_screen_resume(self, event: events.ScreenResume) -> None:
        event.refresh_styles = self._styled_for != self.app.theme
        self._styled_for = self.app.theme
        state = self.session.run
        if state:
            self._tell_bar(state)
        self.shown()

    def shown(self) -> None:
        """Called each time the screen comes to the front, the first time too."""

    def run_updated(self, state: RunState, records: list[Record]) -> None:
        """The followed run has something new. Overriding, call super: the bar shows how far it is."""
        self._tell_bar(state)

    def machine_measured(self, measured: MachineMeasured) -> None:
        """The machine was measured again."""

    def commands(self) -> Iterable[SystemCommand]:
        """What this screen adds to the command palette besides its keys."""
        yield from ()

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        if action == "leave_field":
            return isinstance(self.focused, Input | TextArea)
        return super().check_action(action, parameters)

    def action_leave_field(self) -> None:
        """So that digits and letters are keys again."""
        if isinstance(self.focused, Input | TextArea):
            self.leave_field()

    def action_hide_failure(self) -> None:
        self.query_one(FailureBar).hide()

    def leave_field(self) -> None:
        """Where the focus goes from a field that was written in."""
        self.set_focus(None)

    def steer(self, command: Command, run_id: str = "") -> bool:
        """Tells the followed run, or another one. False: it couldn't be told, and that is shown."""
        try:
            self.session.command(command, run_id)
        except AmigoError as error:
            self.amigo.show_failure(error)
            return False
        return True

    def show_failure(self, failure: StageFailed) -> None:
        if not self.query(FailureBar):
            self._failure = failure
            return
        screen = screen_for(failure.hint)
        here = f"{list(SCREENS).index(screen) + 1} {screen.title()}" if screen and screen != self.NAME else ""
        self.query_one(FailureBar).show(failure, here)

    def _tell_bar(self, state: RunState) -> None:
        self.query_one(ScreenBar).show_run(state, self.session.live)
