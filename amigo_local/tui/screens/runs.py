"""RunsScreen: what was run, how it ended, what it made; go on with a run, steer one, free disk."""

from __future__ import annotations

from collections.abc import Iterable
from typing import ClassVar

from textual import work
from textual.app import ComposeResult, SystemCommand
from textual.binding import Binding, BindingType
from textual.containers import Container, Vertical, VerticalScroll
from textual.content import Content
from textual.timer import Timer
from textual.widgets import Static

from amigo_local.domain.artifact import Figure
from amigo_local.domain.errors import AmigoError
from amigo_local.domain.events import Record, RunFinished, RunStarted, StageFinished, Table
from amigo_local.domain.run_state import RunState
from amigo_local.engine.control import Command
from amigo_local.tui.asking import Reply
from amigo_local.tui.screens.base import AmigoScreen
from amigo_local.tui.screens.cleaning import Cleaning
from amigo_local.tui.screens.confirm import Confirm
from amigo_local.tui.widgets.facts import Facts
from amigo_local.tui.widgets.status_signs import GLYPHS
from amigo_local.tui.widgets.table_view import TableView

DETAILS_AFTER_SECONDS = 0.2
_NOTHING = """\
[b]Nothing was run here yet.[/]

[$accent]3[/]  choose a recipe, then [$accent]r[/] runs it
[$accent]1[/]  then [$accent]d[/] runs the demo on a small real model"""
_TRACEBACK = "Traceback "


class RunsScreen(AmigoScreen):
    NAME = "runs"
    DEFAULT_CSS = """
    RunsScreen {
        #disk { height: auto; max-height: 2; padding: 0 1; color: $text-muted; }
        #nothing { height: auto; padding: 1 2; display: none; }
        #both { layout: vertical; height: 1fr; }
        TableView { height: 1fr; width: 1fr; }
        TableView .detail { height: 0; border: none; }
        #details { height: 50%; border-top: solid $border; padding: 0 1; }
        &.-wide {
            #both { layout: horizontal; }
            #details { width: 46%; max-width: 90; height: 1fr; border-top: none; border-left: solid $border; }
        }
        #title { height: auto; text-style: bold; }
        #traceback { height: auto; display: none; color: $text-muted; margin-top: 1; }
    }
    """
    AUTO_FOCUS = "RowList"
    HORIZONTAL_BREAKPOINTS = [(0, "-narrow"), (100, "-wide")]
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("enter", "follow", "Follow", show=False),
        Binding("r", "resume", "Resume"),
        Binding("space", "pause", "Pause"),
        Binding("s", "steer('stop')", "Stop"),
        Binding("x", "cancel", "Cancel"),
        Binding("t", "traceback", "Traceback"),
        Binding("c", "clean", "Clean up"),
        Binding("f5", "refresh", "Refresh", show=False),
    ]

    def __init__(self) -> None:
        super().__init__()
        self._wanted = ""
        """Id of the run that the details are of, or are to be of."""
        self._rest: Timer | None = None
        self._has_traceback = False
        self._titles: dict[str, str] = {}
        """What each run was asked, by its id."""

    def body(self) -> ComposeResult:
        yield Static(id="disk", markup=False)
        with Container(id="both"):
            with Vertical(id="list"):
                yield Static(Content.from_markup(_NOTHING), id="nothing")
                yield TableView(
                    "what",
                    empty="asking…",
                    sort="what",
                    descending=True,
                    texts={"state": _signed, "what": lambda run_id: self._titles.get(str(run_id), "")},
                )
            with VerticalScroll(id="details", can_focus=False):
                yield Static(id="title", markup=False)
                yield Vertical(id="facts")
                yield Static(id="traceback", markup=False)

    @property
    def table(self) -> TableView:
        return self.query_one(TableView)

    @property
    def pointed(self) -> str:
        row = self.table.current
        return str(self.table.value(row, "what")) if row else ""

    @property
    def state(self) -> str:
        """Of the run that is pointed at: running, paused, done, failed, cancelled or cut."""
        row = self.table.current
        return str(self.table.value(row, "state")).partition(":")[0] if row else ""

    # -- What is shown

    def shown(self) -> None:
        self.action_refresh()

    def run_updated(self, state: RunState, records: list[Record]) -> None:
        super().run_updated(state, records)
        if any(isinstance(record.event, RunStarted | RunFinished | StageFinished) for record in records):
            self.action_refresh()

    def action_refresh(self) -> None:
        self._list()

    @work(group="list", exclusive=True)
    async def _list(self) -> None:
        reply = await self.session.ask("runs")
        if reply.error:
            self.amigo.show_failure(reply.error)
        if not reply.tables:
            return
        self.query_one("#disk", Static).update(reply.notes[-1].text if reply.notes else "")
        empty = not reply.tables[0].rows
        self.query_one("#nothing").display = empty
        self.table.display = not empty
        self.query_one("#details").display = not empty
        first = not self.pointed
        self._titles = {str(row[0]): str(row[1]) for row in reply.tables[0].rows}
        self.table.show(_overview(reply.tables[0]))
        if first and self.session.saved.run_id:
            self.table.point_at(self.session.saved.run_id)
        self._wanted = ""
        self._details_soon()

    def on_table_view_row_pointed(self, message: TableView.RowPointed) -> None:
        message.stop()
        self.refresh_bindings()
        if self.pointed != self._wanted:
            self._details_soon()

    def _details_soon(self) -> None:
        """Once the cursor rests."""
        if self._rest:
            self._rest.stop()
        self._rest = self.set_timer(DETAILS_AFTER_SECONDS, self._ask_details)

    @work(group="details", exclusive=True)
    async def _ask_details(self) -> None:
        self._wanted = run_id = self.pointed
        if run_id:
            reply = await self.session.ask("runs", {"action": "show", "id": run_id})
            if run_id == self.pointed:
                await self._show_details(reply)

    async def _show_details(self, reply: Reply) -> None:
        said = [note.text for note in reply.notes]
        tracebacks = [text for text in said if _TRACEBACK in text]
        title = reply.error.message if reply.error else "\n".join(text for text in said if text not in tracebacks)
        self.query_one("#title", Static).update(title)
        facts = self.query_one("#facts")
        async with self.batch():
            await facts.remove_children()
            await facts.mount_all([Facts(_brief(table)) for table in reply.tables])
        self._has_traceback = bool(tracebacks)
        view = self.query_one("#traceback", Static)
        view.display = False
        view.update("\n\n".join(tracebacks))
        self.refresh_bindings()

    # -- Keys

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        state = self.state if self.is_mounted else ""
        match action:
            case "pause" | "steer" | "cancel":
                return state in ("running", "paused")
            case "resume":
                return state in ("failed", "cancelled", "cut")
            case "traceback":
                return self._has_traceback
            case "follow":
                return bool(state)
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

    def action_pause(self) -> None:
        self.action_steer("continue" if self.state == "paused" else "pause")

    def action_steer(self, command: Command) -> None:
        try:
            self.session.command(command, self.pointed)
        except AmigoError as error:
            self.amigo.show_failure(error)
        self.set_timer(0.5, self.action_refresh)  # its owner looks for a command five times a second

    @work(group="dialog", exclusive=True)
    async def action_cancel(self) -> None:
        run_id = self.pointed
        question = f"Cancel {run_id}?"
        if await self.app.push_screen_wait(
            Confirm(question, "Cancel it", "What is done is kept; r goes on from there.")
        ):
            try:
                self.session.command("cancel", run_id)
            except AmigoError as error:
                self.amigo.show_failure(error)
            self.set_timer(0.5, self.action_refresh)

    def action_traceback(self) -> None:
        view = self.query_one("#traceback", Static)
        view.display = not view.display
        if view.display:
            view.scroll_visible()

    @work(group="dialog", exclusive=True)
    async def action_clean(self) -> None:
        if freed := await self.app.push_screen_wait(Cleaning(self.session)):
            self.notify(freed, markup=False)
        self.action_refresh()

    def commands(self) -> Iterable[SystemCommand]:
        yield SystemCommand("Free disk", "See what could go, then free it", self.action_clean)


def _signed(state: Figure) -> str:
    """`✓ done`, `■ cut`: without what a person would type."""
    word = str(state).partition(":")[0]
    return f"{GLYPHS.get('cancelled' if word == 'cut' else word, '·')} {word}"  # type: ignore[call-overload]  # any word


def _overview(table: Table) -> Table:
    """A run stands in it as its id, and is written as what it was asked."""
    rows = tuple((run_id, state, str(started)[5:], took) for run_id, _, started, took, state in table.rows)
    columns = {column.name: column for column in table.columns}
    return Table(table.title, tuple(columns[name] for name in ("what", "state", "started", "took")), rows)


def _brief(table: Table) -> Table:
    """Paths by their last part: the folder is the home's."""
    rows = tuple(
        tuple(value.rsplit("/", 1)[-1] if isinstance(value, str) and value.startswith("/") else value for value in row)
        for row in table.rows
    )
    return Table(table.title, table.columns, rows)


SCREEN = RunsScreen
