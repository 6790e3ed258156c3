"""LoopScreen: the pipeline of the chosen run; Enter runs what comes next; records below, the machine beside."""

from __future__ import annotations

from collections.abc import Iterable
from typing import ClassVar

from textual import work
from textual.app import ComposeResult, SystemCommand
from textual.binding import Binding, BindingType
from textual.containers import Horizontal, Vertical
from textual.content import Content
from textual.widgets import Static

from amigo_local.domain.errors import AmigoError
from amigo_local.domain.events import MachineMeasured, PlanMade, Record, StageFailed
from amigo_local.domain.pipeline import PipelineStage, pipeline, pipeline_of_run
from amigo_local.domain.plan import Plan
from amigo_local.domain.run_state import RunState
from amigo_local.engine.control import Command
from amigo_local.tui.saved_state import RecipeChoice
from amigo_local.tui.screens.base import AmigoScreen
from amigo_local.tui.widgets.machine_panel import MachinePanel
from amigo_local.tui.widgets.pipeline_view import PipelineView
from amigo_local.tui.widgets.record_log import RecordLog

_WELCOME = """\
[b]From an Ollama tag to a refined Ollama tag, on this machine.[/]

[$accent]2[/]  Models: see what Ollama has, pull another
[$accent]3[/]  Recipe: choose one, and see what it needs here
[$accent]d[/]  Demo: the whole loop on a small real model, in minutes
[$accent]8[/]  Doctor: what this machine can do

Then [$accent]enter[/] here runs one stage after the other."""


class LoopScreen(AmigoScreen):
    NAME = "loop"
    SHOWS_MACHINE = True
    DEFAULT_CSS = """
    LoopScreen {
        #chosen { height: auto; padding: 0 1; color: $text-muted; }
        #left { width: 1fr; }
        #problem { height: auto; padding: 0 1; color: $warning; display: none; }
        #welcome { padding: 1 2; height: auto; display: none; }
        PipelineView { height: auto; max-height: 60%; }
        RecordLog { height: 1fr; min-height: 4; border-top: solid $border; }
        MachinePanel { width: 34; border-left: solid $border; }
        &.-narrow MachinePanel { width: 26; }
        &.-tiny MachinePanel { display: none; }
    }
    """
    HORIZONTAL_BREAKPOINTS = [(0, "-tiny"), (60, "-narrow"), (100, "-wide")]
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("enter", "next", "Run next"),
        Binding("a", "all", "Run all"),
        Binding("space", "steer('pause')", "Pause"),
        Binding("space", "steer('continue')", "Continue"),
        Binding("s", "steer('stop')", "Stop"),
        Binding("x", "steer('cancel')", "Cancel"),
        Binding("d", "demo", "Demo", show=False),
    ]

    def __init__(self) -> None:
        super().__init__()
        self._plan: Plan | None = None
        self._planned_at = 0.0
        self._planned_choice: object = None
        self._shown_run: RunState | None = None
        self._logged_seq = -1
        """Of the shown run, the newest record that the log has: what came while another screen showed isn't lost."""
        self._bound = (False, False)
        self._was_live = False
        self._chosen = Content("")

    def body(self) -> ComposeResult:
        yield Static(id="chosen")
        with Horizontal():
            with Vertical(id="left"):
                yield Static(_WELCOME, id="welcome")
                yield PipelineView()
                yield Static(id="problem")
                yield RecordLog()
            yield MachinePanel()

    # -- What is shown

    def shown(self) -> None:
        if self.amigo.machine:
            self.machine_measured(self.amigo.machine)
        self._show_chosen()
        if self.session.run:
            self._show_log(self.session.run)
        self._draw()
        if self._planned_choice != self._choice_mark():
            self._replan()

    def machine_measured(self, measured: MachineMeasured) -> None:
        self.query_one(MachinePanel).show(measured)

    def run_updated(self, state: RunState, records: list[Record]) -> None:
        super().run_updated(state, records)
        self._show_log(state)
        self._show_chosen()
        was_live, self._was_live = self._was_live, self.session.live
        if was_live and not self._was_live:
            self._replan()
        self._draw()

    def _show_log(self, state: RunState) -> None:
        log = self.query_one(RecordLog)
        if state is not self._shown_run:
            self._shown_run, self._logged_seq = state, -1
            log.clear()
        log.add(state.log_after(self._logged_seq))
        self._logged_seq = state.last_seq
        stage = state.running
        log.show_progress(stage.stage if stage else "", stage.progress if stage and self.session.live else None)

    def _choice_mark(self) -> object:
        choice = self.session.saved.choice
        return (*choice.recipe, choice.model, *choice.overrides)

    def _show_chosen(self) -> None:
        text = self._what_is_chosen()
        if text != self._chosen:
            self._chosen = text
            self.query_one("#chosen", Static).update(text)

    def _what_is_chosen(self) -> Content:
        choice, run = self.session.saved.choice, self.session.run
        if run and self.session.live and self.session.follows_loop and not self.session.follows_choice:
            return Content.from_markup("[b]$title[/] goes on, begun elsewhere", title=run.title)
        parts = [Content.from_markup("recipe [b]$name[/]", name=" → ".join(choice.recipe))] if choice.recipe else []
        if choice.model:
            parts.append(Content.from_markup("model [b]$name[/]", name=choice.model))
        if choice.overrides:
            parts.append(Content(f"{len(choice.overrides)} changed"))
        return Content("  ").join(parts) if parts else Content("no recipe is chosen yet")

    def _draw(self) -> None:
        rows = self.rows
        state = (self.session.live, bool(self.session.run and self.session.run.paused))
        if state != self._bound:
            self._bound = state
            self.refresh_bindings()
        self.query_one(PipelineView).show(rows)
        self.query_one("#welcome").display = not rows and not self.session.saved.choice.recipe

    @property
    def rows(self) -> list[PipelineStage]:
        """The chosen recipe's; while a run of another one goes on, that run's."""
        session = self.session
        run, live = session.run, session.live
        another = live and session.follows_loop and not session.follows_choice
        if self._plan and not another:
            of_it = run if session.follows_choice else None
            return pipeline(self._plan, of_it, planned_at=self._planned_at, live=live)
        return pipeline_of_run(run, live=live) if run and (another or not self._plan) else []

    def _replan(self) -> None:
        if self.session.saved.choice.is_demo or not self.session.saved.choice.recipe:
            self._plan, self._planned_choice = None, self._choice_mark()
            self._say_problem(None)
            self._draw()
            return
        self._ask_plan()

    @work(group="plan", exclusive=True)
    async def _ask_plan(self) -> None:
        mark, asked_at = self._choice_mark(), self.session.clock()
        if not self._plan:
            self.query_one(PipelineView).show_planning()
        reply = await self.session.ask("plan", self.session.loop_params())
        made = reply.first(PlanMade)
        self._plan = made.plan if made else self._plan if mark == self._planned_choice else None
        if made:
            self._planned_at = asked_at
        self._planned_choice = mark
        self._say_problem(reply.error)
        self._draw()

    def _say_problem(self, failure: StageFailed | None) -> None:
        problem = self.query_one("#problem", Static)
        problem.display = failure is not None
        if failure:
            problem.update(Content.from_markup("$message\n[dim]$hint[/]", message=failure.message, hint=failure.hint))

    # -- Keys

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        """Only what can be done now stands in the footer."""
        paused = bool(self.session.run and self.session.run.paused)
        match action, parameters:
            case "steer", (("pause" | "continue") as command,):
                return self.session.live and paused == (command == "continue")
            case "steer", _:
                return self.session.live
            case (("next" | "all" | "demo"), _):
                return not self.session.live
        return super().check_action(action, parameters)

    def action_next(self) -> None:
        self._start(next_only=True)

    def action_all(self) -> None:
        self._start(next_only=False)

    def action_demo(self) -> None:
        self.session.saved.choice = RecipeChoice(recipe=["demo"])
        self._start(next_only=False)

    def _start(self, next_only: bool) -> None:
        if not self.session.saved.choice.recipe:
            self.amigo.action_show_screen("recipe")
            return
        self.run_worker(self._begin(next_only), group="start", exclusive=True)

    async def _begin(self, next_only: bool) -> None:
        try:
            await self.session.run_chosen(next_only=next_only)
        except AmigoError as error:
            self.amigo.show_failure(error)

    def action_steer(self, command: Command) -> None:
        self.steer(command)

    def commands(self) -> Iterable[SystemCommand]:
        yield SystemCommand("Run the demo", "The whole loop on a small real model", self.action_demo)
        yield SystemCommand("Plan again", "Look anew at what is done and what fits", self._replan)


SCREEN = LoopScreen
