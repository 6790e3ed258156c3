"""RunsScreen: what was run, how it ended, what it made; go on with a run, steer one, free disk."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable
from typing import ClassVar

from textual import work
from textual.app import ComposeResult, SystemCommand
from textual.binding import Binding, BindingType
from textual.containers import Container
from textual.content import Content
from textual.timer import Timer
from textual.widgets import Input, Static

from amigo_local.domain.artifact import Figure
from amigo_local.domain.errors import AmigoError
from amigo_local.domain.events import (
    Record,
    RunContinued,
    RunFinished,
    RunPaused,
    RunStarted,
    StageCancelled,
    StageFailed,
    StageFinished,
    StageSkipped,
    Table,
)
from amigo_local.domain.run_state import RunState
from amigo_local.engine.control import Command
from amigo_local.engine.live_runs import Sign, signs_of, standing
from amigo_local.tui.asking import Reply
from amigo_local.tui.screens.base import AmigoScreen
from amigo_local.tui.screens.cleaning import Cleaning
from amigo_local.tui.screens.confirm import Confirm
from amigo_local.tui.widgets.run_details import RunAnswer, RunDetails, run_answer
from amigo_local.tui.widgets.status_signs import signed
from amigo_local.tui.widgets.table_view import TableView

DETAILS_AFTER_SECONDS = 0.2
WATCH_SECONDS = 1.0
LIST_SECONDS = 2.0
"""The list isn't made more often than this by itself."""
OBEYED_SECONDS = 0.5
"""A run looks for a command five times a second."""
_NOTHING = """\
[b]Nothing was run here yet.[/]

[$accent]3[/]  choose a recipe, then [$accent]r[/] runs it
[$accent]1[/]  then [$accent]d[/] runs the demo on a small real model"""
_MOVES_ON = (
    RunStarted | RunPaused | RunContinued | RunFinished | StageFinished | StageSkipped | StageFailed | StageCancelled
)


class RunsScreen(AmigoScreen):
    NAME = "runs"
    DEFAULT_CSS = """
    RunsScreen {
        #disk { height: auto; max-height: 2; padding: 0 1; color: $text-muted; }
        #nothing { height: auto; padding: 1 2; display: none; }
        #both { layout: vertical; height: 1fr; }
        TableView { height: 1fr; width: 1fr; }
        TableView .detail { height: 0; border: none; }
        RunDetails { height: 50%; border-top: solid $border; }
        RunDetails:focus { border-top: solid $primary; }
        &.-wide {
            #both { layout: horizontal; }
            RunDetails { width: 46%; max-width: 90; height: 1fr; border-top: none; border-left: solid $border; }
            RunDetails:focus { border-top: none; border-left: solid $primary; }
        }
    }
    """
    AUTO_FOCUS = "RowList"
    HORIZONTAL_BREAKPOINTS = [(0, "-narrow"), (100, "-wide")]
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("enter", "follow", "Follow", priority=True),  # so that the footer has it, not the list's own
        Binding("r", "resume", "Resume"),
        Binding("space", "steer('pause')", "Pause"),
        Binding("space", "steer('continue')", "Continue"),
        Binding("s", "steer('stop')", "Stop"),
        Binding("x", "cancel", "Cancel"),
        Binding("t", "traceback", "Traceback"),
        Binding("c", "clean", "Clean"),
        Binding("f5", "refresh", "Refresh", show=False),
    ]

    def __init__(self) -> None:
        super().__init__()
        self._detailed = ""
        """Id of the run that the details are of; empty where they are to be asked for anew."""
        self._rest: Timer | None = None
        self._listing = self._list_again = self._asking = False
        self._news = False
        """Whether the followed run has moved on since the list was made."""
        self._listed = 0.0
        """Monotonic seconds when it was asked for last."""
        self._titles: dict[str, str] = {}
        """What each run was asked, by its id."""
        self._signs: dict[str, Sign] | None = None
        """None before the first look."""
        self._standing: dict[str, tuple[bool, bool]] = {}

    def body(self) -> ComposeResult:
        yield Static(id="disk", markup=False)
        yield Static(Content.from_markup(_NOTHING), id="nothing")
        with Container(id="both"):
            yield TableView(
                "what",
                empty="asking…",
                sort="what",
                descending=True,
                texts={"state": _signed, "what": lambda run_id: self._titles.get(str(run_id), "")},
            )
            yield RunDetails()

    @property
    def table(self) -> TableView:
        return self.query_one(TableView)

    @property
    def details(self) -> RunDetails:
        return self.query_one(RunDetails)

    @property
    def pointed(self) -> str:
        row = self.table.current
        return str(self.table.value(row, "what")) if row else ""

    @property
    def state(self) -> str:
        """Of the run that is pointed at: running, paused, done, failed, cancelled or cut."""
        row = self.table.current
        return _word(self.table.value(row, "state")) if row else ""

    # -- What is shown

    def on_mount(self) -> None:
        self.set_interval(WATCH_SECONDS, self._watch)

    def shown(self) -> None:
        self.action_refresh()

    @work(group="watch", exclusive=True)
    async def _watch(self) -> None:
        """Runs that aren't followed, and those that were killed, say nothing themselves."""
        if not self.is_current or self._signs is None:
            return
        before = self._standing
        await self._look()
        if self._standing != before or (self._news and self._listed_long_ago):
            self.action_refresh()

    async def _look(self) -> None:
        now = time.monotonic()
        self._signs = await asyncio.to_thread(signs_of, self.session.workspace.runs_dir, self._signs or {}, now)
        self._standing = standing(self._signs, now)

    def run_updated(self, state: RunState, records: list[Record]) -> None:
        super().run_updated(state, records)
        if any(isinstance(record.event, _MOVES_ON) for record in records):
            self._news = True  # where it is too early, the watch sees to it
            if self._listed_long_ago:
                self.action_refresh()

    @property
    def _listed_long_ago(self) -> bool:
        return time.monotonic() - self._listed >= LIST_SECONDS

    def action_refresh(self) -> None:
        """One at a time: what is asked for meanwhile comes after it."""
        self._list_again = True
        if not self._listing:
            self._listing = True
            self._list()

    @work(group="list")
    async def _list(self) -> None:
        try:
            if self._signs is None:
                await self._look()  # before it is asked: what begins meanwhile is then seen
            while self._list_again:
                self._list_again = self._news = False
                self._listed = time.monotonic()
                self._show_list(await self.session.ask("runs"))
        finally:
            self._listing = False

    def _show_list(self, reply: Reply) -> None:
        if reply.error:
            self.amigo.show_failure(reply.error)
        disk = self.query_one("#disk", Static)
        if reply.error or not reply.tables:
            disk.update("the list couldn't be made; f5 tries again")
            return
        disk.update(reply.notes[-1].text if reply.notes else "")
        runs = reply.tables[0]
        first = not self.pointed
        self._titles = {str(row[0]): str(row[1]) for row in runs.rows}
        self.query_one("#nothing").display = not runs.rows
        self.query_one("#both").display = bool(runs.rows)
        self.table.show(_overview(runs))
        if first and self.session.saved.run_id:
            self.table.point_at(self.session.saved.run_id)
        if first and runs.rows and self.focused is None:
            self.call_after_refresh(self.table.focus_rows)
        self.refresh_bindings()
        self._detailed = ""
        self._details_soon()

    def on_table_view_row_pointed(self, message: TableView.RowPointed) -> None:
        message.stop()
        self.refresh_bindings()
        if self.pointed != self._detailed:
            self._details_soon()

    def _details_soon(self) -> None:
        """Once the cursor rests."""
        if self._rest:
            self._rest.stop()
        self._rest = self.set_timer(DETAILS_AFTER_SECONDS, self._fill_details)

    def _fill_details(self) -> None:
        if not self._asking:
            self._asking = True
            self._ask_details()

    @work(group="details")
    async def _ask_details(self) -> None:
        """Until they are of the run under the cursor."""
        try:
            while (run_id := self.pointed) != self._detailed:
                self._detailed = run_id
                reply = await self.session.ask("runs", {"action": "show", "id": run_id})
                if run_id == self.pointed:
                    await self.details.show(run_id, _answer(reply))
                    self.refresh_bindings()
        finally:
            self._asking = False

    # -- Keys

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        """Only what can be done with the run under the cursor stands in the footer."""
        if not self.is_mounted:
            return super().check_action(action, parameters)
        match action, parameters:
            case "steer", ("continue",):
                return self.state == "paused"
            case "steer", ("pause",):
                return self.state == "running"
            case ("steer" | "cancel", _):
                return self.state in ("running", "paused")
            case "resume", _:
                return self.state in ("failed", "cancelled", "cut")
            case "traceback", _:
                return self.details.has_traceback
            case "follow", _:
                return bool(self.state) and not isinstance(self.focused, Input)
        return super().check_action(action, parameters)

    def on_table_view_row_chosen(self, message: TableView.RowChosen) -> None:
        message.stop()
        self.action_follow()

    @work(group="follow", exclusive=True)
    async def action_follow(self) -> None:
        if run_id := self.pointed:
            await self.session.follow(run_id)
            self.amigo.action_show_screen("loop")

    @work(group="follow", exclusive=True)
    async def action_resume(self) -> None:
        try:
            await self.session.resume(self.pointed)
        except AmigoError as error:
            self.amigo.show_failure(error)
        self.action_refresh()

    def action_steer(self, command: Command) -> None:
        self._tell(command, self.pointed)

    @work(group="dialog", exclusive=True)
    async def action_cancel(self) -> None:
        run_id = self.pointed
        kept = f"`{self._titles.get(run_id, '')}`\nWhat is done is kept; r goes on from there."
        if await self.app.push_screen_wait(Confirm(f"Cancel {run_id}?", "Cancel it", kept)):
            self._tell("cancel", run_id)

    def _tell(self, command: Command, run_id: str) -> None:
        self.steer(command, run_id)
        self.set_timer(OBEYED_SECONDS, self.action_refresh)

    def action_traceback(self) -> None:
        self.details.toggle_traceback()

    @work(group="dialog", exclusive=True)
    async def action_clean(self) -> None:
        if freed := await self.app.push_screen_wait(Cleaning(self.session)):
            self.notify(freed, markup=False)
        self.action_refresh()

    def commands(self) -> Iterable[SystemCommand]:
        yield SystemCommand("Free disk", "See what could go, then free it", self.action_clean)
        yield SystemCommand("Refresh the runs", "Look at this home again (f5)", self.action_refresh)


def _answer(reply: Reply) -> RunAnswer:
    if reply.error:
        return RunAnswer(failures=(f"{reply.error.message}\n{reply.error.hint}".rstrip(),))
    return run_answer(reply.notes, reply.tables)


def _word(state: Figure) -> str:
    """Without what a person would type: `cut: amigo-local runs resume …`."""
    return str(state).partition(":")[0]


def _signed(state: Figure) -> str:
    return signed(_word(state))


def _overview(table: Table) -> Table:
    """A run stands in it as its id, and is written as what it was asked."""
    rows = tuple((run_id, state, str(started)[5:], took) for run_id, _, started, took, state in table.rows)
    columns = {column.name: column for column in table.columns}
    return Table(table.title, tuple(columns[name] for name in ("what", "state", "started", "took")), rows)


SCREEN = RunsScreen
