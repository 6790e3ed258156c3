"""EvaluationSetup: what is to be asked of which models, its start, and how it goes on; the left half of Evaluate."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from typing import ClassVar

from textual import work
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.content import Content
from textual.widgets import Static

from amigo_local.domain.errors import EXIT_CANCELLED, AmigoError, InputError
from amigo_local.domain.events import GenerationFinished, Record, Table
from amigo_local.domain.model_ref import parse_model_ref
from amigo_local.domain.pipeline import PipelineStatus
from amigo_local.domain.recipe import HUMANEVAL_PROBLEMS
from amigo_local.domain.run_state import RunState
from amigo_local.engine.control import Command
from amigo_local.presentation.run_models import evaluation_in, models_of
from amigo_local.tui.evaluations import (
    STAGE,
    SUITES,
    evaluate_params,
    evaluate_title,
    step_problems,
    step_tokens,
    toggle_suite,
)
from amigo_local.tui.saved_state import EvaluateState
from amigo_local.tui.screens.ask_text import AskText
from amigo_local.tui.screens.base import AmigoScreen
from amigo_local.tui.screens.choose_model import choose_model
from amigo_local.tui.widgets.evaluation_form import EvaluationForm
from amigo_local.tui.widgets.evaluation_progress import EvaluationProgress
from amigo_local.tui.widgets.failure_bar import FailureBar
from amigo_local.tui.widgets.model_rows import short_name
from amigo_local.tui.widgets.record_log import RecordLog

_NOTHING = """\
[b]Nothing was evaluated yet.[/]

An evaluation puts the same prompts to one model, or to two, and measures: does code come at once, does it run, is \
what the request supplies used, are bugs mended. Each figure comes with its 95 % interval; each answer can be read.

[$accent]m[/] and [$accent]r[/] choose the models, [$accent]space[/] takes suites in or leaves them out, \
[$accent]enter[/] starts. All but humaneval take their requests from what a run has held out: prepare a set first \
([$accent]1[/])."""


class EvaluationSetup(AmigoScreen):
    """A screen over it shows what was found."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("e", "begin", "Start", show=False),
        Binding("e", "set_up", "New evaluation"),
        Binding("space", "tell('pause')", "Pause"),
        Binding("space", "tell('continue')", "Continue"),
        Binding("x", "tell('cancel')", "Cancel"),
        Binding("m", "pick(0)", "Model", show=False),
        Binding("r", "pick(1)", "2nd model", show=False),
    ]

    def __init__(self) -> None:
        super().__init__()
        self._begun = ""
        """Id of a run that was seen to evaluate."""
        self._logged: tuple[str, int] = ("", -1)
        self._offered: object = None
        """What the keys in the footer depend on."""

    def setup(self) -> ComposeResult:
        yield EvaluationForm(SUITES)
        yield EvaluationProgress()
        yield RecordLog(with_stage=False)
        yield Static(Content.from_markup(_NOTHING), id="nothing")

    def found(self, folder: str) -> None:
        """The evaluation that was seen to go on has come to its end."""
        raise NotImplementedError

    def focus_work(self) -> None:
        """Where keys go as it begins."""
        raise NotImplementedError

    def action_set_up(self) -> None:
        """Shows the form, where it isn't seen, and puts the keys there."""
        raise NotImplementedError

    @property
    def state(self) -> EvaluateState:
        return self.session.saved.evaluate

    @property
    def form(self) -> EvaluationForm:
        return self.query_one(EvaluationForm)

    @property
    def working(self) -> bool:
        """Whether the followed run evaluates now."""
        run = self.session.run
        if run is None or not self.session.live:
            return False
        stage = evaluation_in(run)
        return run.verb == STAGE or (stage is not None and stage.status == "running")

    def short(self, ref: str) -> str:
        return short_name(ref, self.session.workspace.artifacts_dir)

    # -- What is to be asked

    def show_form(self) -> None:
        state, run = self.state, self.session.run
        if not state.refs and run:
            state.refs = models_of(run)
            with contextlib.suppress(InputError):  # typed on the Recipe screen, and no model's name or none yet
                state.refs = state.refs or [str(parse_model_ref(self.session.saved.choice.model))]
        problems = f"{state.problems or 'all'} of {HUMANEVAL_PROBLEMS}, of humaneval"
        self.form.show([self.short(ref) for ref in state.refs], state.suites, problems, f"{state.max_tokens:,} tokens")

    def on_evaluation_form_acted(self, event: EvaluationForm.Acted) -> None:
        event.stop()
        row, how, state = event.row, event.how, self.state
        if row.startswith("model"):
            place = int(row[-1])
            if how == "remove":
                del state.refs[place : place + 1]
            elif how == "toggle":
                self.action_pick(place)
        elif how == "toggle" and (suite := next((known for known in SUITES if known == row), None)):
            toggle_suite(state, suite)
        elif row in ("problems", "tokens"):
            if how == "toggle":
                self._ask_number(row)
            elif how != "remove":
                (step_problems if row == "problems" else step_tokens)(state, 1 if how == "more" else -1)
        self.show_form()

    @work(group="dialog", exclusive=True)
    async def _ask_number(self, row: str) -> None:
        state = self.state
        if row == "problems":
            question, help = "How many problems of HumanEval?", f"1 to {HUMANEVAL_PROBLEMS}, evenly spread"
            value = state.problems or HUMANEVAL_PROBLEMS
        else:
            question, help, value = "How long may an answer be?", "in tokens; a longer one is cut", state.max_tokens
        typed = await self.app.push_screen_wait(AskText(question, help, str(value)))
        if not typed:
            return
        if not (typed.isascii() and typed.isdecimal() and int(typed)):
            self.notify(f"{typed} isn't a number from 1 on", severity="warning", markup=False)
        elif row == "problems":
            state.problems = int(typed) if int(typed) < HUMANEVAL_PROBLEMS else None
        else:
            state.max_tokens = int(typed)
        self.show_form()

    @work(group="dialog", exclusive=True)
    async def action_pick(self, place: int) -> None:
        refs = self.state.refs
        question = ("The model to measure, or the old one of two", "The new one, to compare with")[place]
        if chosen := await choose_model(self, question, refs[place] if place < len(refs) else ""):
            refs[place : place + 1] = [chosen]
            self.show_form()

    def on_evaluation_form_submitted(self, event: EvaluationForm.Submitted) -> None:
        event.stop()
        self.action_begin()

    @work(group="start", exclusive=True)
    async def action_begin(self) -> None:
        for chosen, missing in ((self.state.refs, "a model first, with m"), (self.state.suites, "a suite with space")):
            if not chosen:
                self.notify(f"choose {missing}", severity="warning")
                return
        self.query_one(FailureBar).hide()
        params = evaluate_params(self.state)
        try:
            self._begun = await self.session.start(STAGE, params, evaluate_title(params))
        except AmigoError as error:
            self.amigo.show_failure(error)

    # -- How it goes on

    def run_updated(self, state: RunState, records: list[Record]) -> None:
        super().run_updated(state, records)
        if not self.state.refs:
            self.show_form()
        self.show_work(state)

    def show_work(self, run: RunState) -> None:
        """An evaluation that is seen to go on stays in sight when it has ended, with what it said."""
        stage, working, was_working = evaluation_in(run), self.working, self.form.disabled
        if working:
            self._begun = run.run_id
        mine = self._begun == run.run_id
        self.set_class(mine, "-working")
        self.form.disabled = working
        progress = self.query_one(EvaluationProgress)
        progress.display = mine
        if mine:
            progress.show(_status(run, working), run.title, stage.progress if stage and working else None)
            self._log(run)
            if stage and stage.artifact and not working:
                self.found(stage.artifact.path)
        if (working, run.paused) != self._offered:
            self._offered = working, run.paused
            self.refresh_bindings()
            if working and not was_working:
                self.focus_work()

    def _log(self, run: RunState) -> None:
        log = self.query_one(RecordLog)
        if self._logged[0] != run.run_id:
            self._logged = run.run_id, -1
            log.clear()
        fresh = run.log_after(self._logged[1])
        self._logged = run.run_id, run.last_seq
        log.add(_told(fresh))

    def action_tell(self, command: Command) -> None:
        self.steer(command)

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        if action == "begin":
            return self.form.has_focus
        if action == "pick":
            return not self.working
        if action == "tell":
            paused = bool(self.session.run and self.session.run.paused)
            return self.working and {"pause": not paused, "continue": paused, "cancel": True}[str(parameters[0])]
        return super().check_action(action, parameters)


def _told(records: Iterable[Record]) -> Iterator[Record]:
    """Of the evaluation, without its tables, which are beside it, and without the figures of every answer."""
    left_out = Table | GenerationFinished
    return (record for record in records if record.stage == STAGE and not isinstance(record.event, left_out))


def _status(run: RunState, working: bool) -> PipelineStatus:
    if working:
        return "paused" if run.paused else "running"
    if run.exit_code == 0:
        return "done"
    return "cancelled" if run.exit_code in (None, EXIT_CANCELLED) else "failed"
