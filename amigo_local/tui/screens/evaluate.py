"""EvaluateScreen: suites to one or two models; what came of it, old beside new, and every answer."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import ClassVar

from textual import work
from textual.app import ComposeResult, SystemCommand
from textual.binding import Binding, BindingType
from textual.containers import Horizontal, Vertical
from textual.content import Content
from textual.widgets import Static

from amigo_local.domain.artifact import Figure
from amigo_local.domain.events import AnswerShown, Note, Table
from amigo_local.tui.evaluations import Answers, Key
from amigo_local.tui.screens.evaluation_setup import EvaluationSetup
from amigo_local.tui.screens.pick_row import PickRow
from amigo_local.tui.widgets.answer_pair import AnswerPair
from amigo_local.tui.widgets.answer_rows import AnswerRows
from amigo_local.tui.widgets.ink import MUTED
from amigo_local.tui.widgets.measures import Measures
from amigo_local.tui.widgets.record_log import RecordLog
from amigo_local.tui.widgets.table_view import TableView

_ANSWERS = "Answers"


class EvaluateScreen(EvaluationSetup):
    NAME = "evaluate"
    DEFAULT_CSS = """
    EvaluateScreen {
        #standing { height: 1; padding: 0 1; text-wrap: nowrap; text-overflow: ellipsis; }
        #setup { width: 48; border-right: solid $border; }
        #results { width: 1fr; }
        #nothing { height: auto; padding: 1 1 0 1; display: none; }
        #setup RecordLog { border-top: solid $border; padding: 0 1; min-height: 3; display: none; }
        Measures { height: 1fr; }
        AnswerRows { height: 1fr; border-top: solid $border; border-title-color: $text; }
        #results Measures:focus, #results AnswerRows:focus-within { height: 2fr; }
        AnswerPair { height: 1fr; display: none; }
        &.-working #setup RecordLog { display: block; }
        &.-narrow #setup { display: none; width: 1fr; border-right: none; }
        &.-narrow.-asking #setup { display: block; }
        &.-narrow.-asking #results { display: none; }
        &.-narrow AnswerPair #sides { layout: vertical; }
        &.-empty #results, &.-empty #standing { display: none; }
        &.-empty #setup { display: block; width: 1fr; border-right: none; }
        &.-empty #nothing { display: block; }
        &.-empty.-working #nothing { display: none; }
        &.-open #main { display: none; }
        &.-open AnswerPair { display: block; }
    }
    """
    AUTO_FOCUS = ""
    HORIZONTAL_BREAKPOINTS = [(0, "-narrow"), (100, "-wide")]
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("n", "step(1, True)", "Next failure"),
        Binding("p", "step(-1, True)", "Failure before"),
        Binding("right_square_bracket", "step(1, False)", "Next", key_display="]"),
        Binding("left_square_bracket", "step(-1, False)", "Before", key_display="["),
        Binding("f", "only_failures(True)", "Failures only"),
        Binding("f", "only_failures(False)", "All answers"),
        Binding("o", "older", "Older"),
        Binding("escape", "back", "Back"),
    ]

    def __init__(self) -> None:
        super().__init__()
        self.answers: Answers | None = None
        """Of the evaluation that is shown."""
        self.opened: Key | None = None
        """The question that is shown with its answers."""
        self.failures_only = False
        self.where = ""
        """Folder of the evaluation that is shown; empty: the newest, wherever that is."""
        self._found = ""

    def body(self) -> ComposeResult:
        yield Static(id="standing", markup=False)
        with Horizontal(id="main"):
            with Vertical(id="setup"):
                yield from self.setup()
            with Vertical(id="results"):
                yield Measures()
                yield AnswerRows()
        yield AnswerPair()

    @property
    def rows(self) -> AnswerRows:
        return self.query_one(AnswerRows)

    def shown(self) -> None:
        self.show_form()
        if self.session.run:
            self.show_work(self.session.run)
        if self.answers is None:
            self._show(self.state.shown)
        elif not self.focused:
            self.call_after_refresh(self._focus_list)

    # -- What was found

    def found(self, folder: str) -> None:
        """Shown once; an answer that is being read stays."""
        if folder == self._found:
            return
        self._found, self.state.shown = folder, ""
        if not self.opened:
            self._show(folder)

    @work(group="show", exclusive=True)
    async def _show(self, where: str) -> None:
        """Asks for everything that is known of an evaluation; of one that is gone or empty, of the newest."""
        known = await self._known()
        there = {str(row[-1]): row for row in known.rows}
        where = where if where in there else next(iter(there), "")
        params = {"where": where} if where else {}
        reply = await self.session.ask("answers", params)
        failed = reply if reply.error else await self.session.ask("answers", params | {"failed": True})
        answers, failures = _answers(reply.tables), _answers(failed.tables)
        if answers is None or failures is None:
            self.set_class(self.answers is None, "-empty")
            if where and reply.error:
                self.amigo.show_failure(reply.error)
            self._focus_list()
            return
        self.where, self.answers = where, Answers(answers, failures)
        self.remove_class("-empty", "-asking")
        self.failures_only = self.failures_only and bool(self.answers.failures)
        self._show_standing(there.get(where), reply.notes[:1])
        self.query_one(Measures).show([table for table in reply.tables if table.title != _ANSWERS])
        self._show_rows()
        if self.app.screen is self:
            self.rows.focus_rows()

    async def _known(self) -> Table:
        reply = await self.session.ask("answers", {"all": True})
        return reply.first(Table) or Table("", (), ())

    def _written(self, models: Figure) -> str:
        """`old → new`, each as short as it is elsewhere."""
        return " → ".join(self.short(ref) for ref in str(models).split(" → "))

    def _show_standing(self, row: Sequence[Figure] | None, notes: Sequence[Note]) -> None:
        told = (
            [Content.from_markup("[b]$models[/]  $made", models=self._written(row[0]), made=str(row[1]))] if row else []
        )
        told += [Content.styled(note.text, MUTED) for note in notes]
        self.query_one("#standing", Static).update(Content("  ").join(told))

    def _show_rows(self) -> None:
        if self.answers:
            self.rows.show(self.answers.failed if self.failures_only else self.answers.answers)
            self.rows.border_title = f"{'failures only' if self.failures_only else 'answers'}, enter opens one"
        self.refresh_bindings()

    def action_only_failures(self, only: bool) -> None:
        self.failures_only = only
        self._show_rows()

    @work(group="dialog", exclusive=True)
    async def action_older(self) -> None:
        known = await self._known()
        dialog = PickRow("Which evaluation?", known, "evaluation", self.where, texts={"models": self._written})
        if chosen := await self.app.push_screen_wait(dialog):
            self.state.shown = "" if chosen == known.rows[0][-1] else chosen
            self._close_answer()
            self._show(chosen)

    # -- One answer

    def on_table_view_row_chosen(self, event: TableView.RowChosen) -> None:
        event.stop()
        rows = event.table_view
        self._open_answer((rows.value(event.row, "suite"), rows.value(event.row, "id")))

    @work(group="answer", exclusive=True)
    async def _open_answer(self, key: Key) -> None:
        params = {"suite": key[0], "id": key[1]} | ({"where": self.where} if self.where else {})
        reply = await self.session.ask("answers", params)
        answers = reply.all(AnswerShown)
        if reply.error or not answers:
            if reply.error:
                self.amigo.show_failure(reply.error)
            return
        fresh, self.opened = self.opened is None, key
        self.add_class("-open")
        pair = self.query_one(AnswerPair)
        place = self.answers.place(key) if self.answers else ""
        pair.show("  ".join(str(part) for part in (*key, place) if part), answers)
        if fresh:
            self.call_after_refresh(pair.focus_text)
        self.refresh_bindings()

    def action_step(self, by: int, failures: bool) -> None:
        if not self.answers or not self.opened:
            return
        if found := self.answers.step(self.opened, by, failures=failures):
            self._open_answer(found)
        else:
            what = "failure" if failures else "answer"
            self.notify(f"there is no {what} {'after' if by > 0 else 'before'} this one")

    def _close_answer(self) -> None:
        self.workers.cancel_group(self, "answer")  # one that is on its way would open again
        if self.opened:
            self.rows.point_at(self.opened[1])
        self.opened = None
        self.remove_class("-open")
        self.refresh_bindings()

    # -- Keys

    def _focus_list(self) -> None:
        """Where keys go when nothing that can be seen is in use."""
        if self.app.screen is not self or (self.focused and self.focused in self.focus_chain):
            return
        if self.has_class("-empty") or self.has_class("-asking"):
            self._focus_setup()
        elif self.answers:
            self.rows.focus_rows()

    def _focus_setup(self) -> None:
        (self.query_one(RecordLog) if self.form.disabled else self.form).focus()

    def focus_work(self) -> None:
        if self.app.screen is self and not self.opened:
            self.add_class("-asking")
            self.call_after_refresh(self._focus_setup)

    def action_set_up(self) -> None:
        self._close_answer()
        self.add_class("-asking")
        self.call_after_refresh(self._focus_setup)

    def action_back(self) -> None:
        """From an answer to the list; from what is to be asked to what was found."""
        if self.opened:
            self._close_answer()
            if self._found and self._found != self.where and not self.state.shown:
                self._show(self._found)  # it was found meanwhile
        self.remove_class("-asking")
        self.call_after_refresh(self.rows.focus_rows)

    def on_descendant_focus(self) -> None:
        self.refresh_bindings()

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        """Only what can be done now stands in the footer."""
        if not self.is_mounted:
            return True
        opened, there = self.opened is not None, self.answers is not None
        match action:
            case "set_up":
                return not opened and not self.form.has_focus
            case "step":
                return opened and (parameters[1] is False or bool(self.answers and self.answers.failures))
            case "only_failures":
                return there and not opened and parameters[0] is not self.failures_only
            case "older":
                return there and not opened
            case "back":
                return opened or (there and (self.form.has_focus or self.has_class("-asking")))
            case "pick" if opened:
                return False
        return super().check_action(action, parameters)

    def commands(self) -> Iterable[SystemCommand]:
        yield SystemCommand("New evaluation", "Choose models and suites (e)", self.action_set_up)
        yield SystemCommand("Older evaluation", "Look at another one of this home (o)", self.action_older)
        yield SystemCommand("Choose the first model", "The one to measure, or the old one", lambda: self.action_pick(0))
        yield SystemCommand("Choose the second model", "The one to compare with it", lambda: self.action_pick(1))


def _answers(tables: Sequence[Table]) -> Table | None:
    return next((table for table in tables if table.title == _ANSWERS), None)


SCREEN = EvaluateScreen
