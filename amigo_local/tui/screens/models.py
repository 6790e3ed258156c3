"""ModelsScreen: Ollama's tags and our artifacts; what is known about each, and what can be done with it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import ClassVar

from textual import work
from textual.app import ComposeResult, SystemCommand
from textual.binding import Binding, BindingType
from textual.containers import Container, Vertical
from textual.content import Content
from textual.timer import Timer
from textual.widgets import Static

from amigo_local.domain.errors import EXIT_CANCELLED
from amigo_local.domain.events import LineageShown, Record
from amigo_local.presentation.formats import cells
from amigo_local.tui.asking import Asked
from amigo_local.tui.screens.model_actions import ModelActions
from amigo_local.tui.widgets.lineage_tree import LineageTree
from amigo_local.tui.widgets.model_details import ModelAnswer, ModelDetails
from amigo_local.tui.widgets.model_facts import Fact
from amigo_local.tui.widgets.model_rows import ModelRow, model_rows, overview, short_name
from amigo_local.tui.widgets.table_view import TableView
from amigo_local.tui.widgets.work_view import WorkView

DETAILS_AFTER_SECONDS = 0.2
"""Of rest: a cursor that passes asks for nothing."""
_ROOMY = 88
"""Columns that the list needs to show every property."""
_NOTHING = """\
[b]There is no model here yet.[/]

[$accent]p[/]  pulls a tag of Ollama's library, such as gemma3:1b
[$accent]1[/]  then [$accent]d[/]  runs the demo on a small real model, without Ollama
[$accent]8[/]  Doctor says whether a server answers"""


class ModelsScreen(ModelActions):
    NAME = "models"
    DEFAULT_CSS = """
    ModelsScreen {
        #note { height: auto; max-height: 3; padding: 0 1; color: $warning; background: $warning 10%; display: none; }
        #nothing { height: auto; padding: 1 2; display: none; }
        #both { layout: vertical; height: 1fr; }
        #list { height: 1fr; width: 1fr; }
        TableView .detail { height: 0; border: none; }
        ModelDetails { height: 50%; }
        &.-open #list { display: none; }
        &.-open ModelDetails { height: 1fr; }
        &.-wide {
            #both { layout: horizontal; }
            #list { display: block; }
            ModelDetails { width: 42%; max-width: 84; height: 1fr; border-left: solid $border; }
        }
    }
    """
    AUTO_FOCUS = "RowList"
    HORIZONTAL_BREAKPOINTS = [(0, "-narrow"), (100, "-wide")]
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("right_square_bracket", "page(1)", "Next page", show=False),
        Binding("left_square_bracket", "page(-1)", "Page before", show=False),
        Binding("f5", "refresh", "Refresh", show=False),
    ]

    def __init__(self) -> None:
        super().__init__()
        self._answers: dict[str, ModelAnswer] = {}
        """By ref; forgotten when anything in the list is another."""
        self._wanted = ""
        """Ref of the row that the details are of, or are to be of."""
        self._asking: dict[str, Asked] = {}
        self._rest: Timer | None = None
        self._was_roomy = False

    def body(self) -> ComposeResult:
        yield WorkView()
        yield Static(id="note", markup=False)
        with Container(id="both"):
            with Vertical(id="list"):
                yield Static(Content.from_markup(_NOTHING), id="nothing")
                yield TableView(
                    empty="asking…",
                    texts={"model": lambda ref: short_name(str(ref), self.session.workspace.artifacts_dir)},
                )
            yield ModelDetails()

    @property
    def table(self) -> TableView:
        return self.query_one(TableView)

    @property
    def details(self) -> ModelDetails:
        return self.query_one(ModelDetails)

    @property
    def current(self) -> ModelRow | None:
        row = self.table.current if self.is_mounted else None
        return self.rows.get(str(row[0])) if row else None

    def on_mount(self) -> None:
        self.screen_layout_refresh_signal.subscribe(self, self._laid_out)

    def shown(self) -> None:
        if self.session.run:
            self.show_work(self.session.run)
        self.reload()

    def commands(self) -> Iterable[SystemCommand]:
        yield SystemCommand("Refresh the models", "ask Ollama and this home again (f5)", self.action_refresh)
        yield from super().commands()

    # -- The list

    @work(group="list", exclusive=True)
    async def reload(self, at: str = "") -> None:
        """Asks for the list anew; the cursor stays on its row, or goes to `at`."""
        reply = await self.session.ask("models")
        table = next(iter(reply.tables), None)
        if reply.error or table is None:
            if reply.error:
                self.amigo.show_failure(reply.error)
            self._say("the list couldn't be made; f5 tries again")
            return
        self.serves_library = bool(reply.notes) or not self.session.settings.ollama.use
        self._say("\n".join(f"{note.text}: {note.fix}" if note.fix else note.text for note in reply.notes))
        self._show_rows({row.ref: row for row in model_rows(table)})
        if at:
            self.table.point_at(at)
        self._look()

    def _say(self, note: str) -> None:
        line = self.query_one("#note", Static)
        line.display = bool(note)
        line.update(note)

    def _show_rows(self, rows: dict[str, ModelRow]) -> None:
        if rows != self.rows:
            self._answers.clear()
        self.rows = rows
        self.query_one("#nothing").display = not rows
        self.table.display = self.details.display = bool(rows)
        self._lay_out()
        self.refresh_bindings()
        if rows and self.focused is None and self.app.screen is self:
            self.call_after_refresh(self.table.focus_rows)

    def _lay_out(self) -> None:
        self._was_roomy = self._is_roomy
        self.table.show(overview(list(self.rows.values()), roomy=self._was_roomy))

    @property
    def _is_roomy(self) -> bool:
        return self.query_one("#list").size.width >= _ROOMY

    def _laid_out(self, screen: object) -> None:
        """The list is as wide as what lies beside it lets it be, which is known after a layout."""
        if self._is_roomy != self._was_roomy:
            self.call_later(self._lay_out)

    def action_refresh(self) -> None:
        self._answers.clear()
        self._wanted = ""
        self.reload()

    # -- The details of the row under the cursor

    def on_table_view_row_pointed(self, event: TableView.RowPointed) -> None:
        event.stop()
        self.refresh_bindings()
        self._look()

    def _look(self) -> None:
        """Shows what is known of the row under the cursor, and asks for the rest if the cursor rests."""
        row = self.current
        if row is None:
            return
        if answer := self._answers.get(row.ref):
            self._stop_rest()
            if self._wanted != row.ref:
                self._wanted = row.ref
                self._show_answer(row, answer)
            return
        if self._wanted == row.ref and (self._rest is not None or row.ref in self._asking):
            return
        self._wanted = row.ref
        self.details.show_first(self.called(row), _facts(row))
        self._stop_rest()
        self._rest = self.set_timer(DETAILS_AFTER_SECONDS, self._ask_details)

    def _stop_rest(self) -> None:
        if self._rest:
            self._rest.stop()
        self._rest = None

    @work(group="details")
    async def _ask_details(self) -> None:
        """What is asked meanwhile for another row is the one that counts: this is then told to end."""
        self._rest = None
        ref, rows = self._wanted, self.rows
        for other, asked in list(self._asking.items()):
            if other != ref:
                await asked.cancel()
        if ref in self._asking:
            return
        asked = self._asking[ref] = self.session.stream("models", {"action": "show", "ref": ref})
        try:
            records: list[Record] = []
            async for batch in asked:
                records += batch
        finally:
            del self._asking[ref]
        reply = asked.reply
        reply.records = records
        if reply.exit_code == EXIT_CANCELLED or rows != self.rows:
            self._look()  # the cursor may have come back to it meanwhile
            return
        answer = ModelAnswer(reply.tables, reply.first(LineageShown), reply.notes, reply.error)
        if not reply.error:  # what is wrong now may be right the next time
            self._answers[ref] = answer
        if ref == self._wanted and ref in self.rows:
            self._show_answer(self.rows[ref], answer)

    def _show_answer(self, row: ModelRow, answer: ModelAnswer) -> None:
        self.details.show(self.called(row), answer, self.rows)

    def action_page(self, by: int) -> None:
        self.details.turn(by)

    def on_table_view_row_chosen(self, event: TableView.RowChosen) -> None:
        """Where there is no room for both, the details take the place of the list."""
        event.stop()
        self.add_class("-open")
        self.call_after_refresh(self.details.focus_page)

    def on_model_details_left(self, event: ModelDetails.Left) -> None:
        event.stop()
        self.remove_class("-open")
        self.call_after_refresh(self.table.focus_rows)

    def on_lineage_tree_jumped(self, event: LineageTree.Jumped) -> None:
        event.stop()
        if not self.table.point_at(event.ref):
            self.notify("the filter hides it", severity="warning")


def _facts(row: ModelRow) -> list[Fact]:
    """What the list knows, in the words of `models show`."""
    table = overview([row], roomy=True)
    (texts,) = cells(table)
    found = [(column.name, text) for column, text in zip(table.columns, texts, strict=True) if column.name != "model"]
    return [*found, ("made from", str(row.made_from))] if row.made_from else found


SCREEN = ModelsScreen
