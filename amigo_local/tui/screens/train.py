"""TrainScreen: a training as it goes on, whoever began it: curves, figures, checkpoints; pause, stop, resume."""

from __future__ import annotations

from collections.abc import Iterable
from typing import ClassVar

from textual.app import ComposeResult, SystemCommand
from textual.binding import Binding, BindingType
from textual.containers import Horizontal, Vertical
from textual.widgets import Static

from amigo_local.domain.errors import AmigoError
from amigo_local.domain.events import Record, Table
from amigo_local.domain.run_state import RunState, StageState
from amigo_local.engine.control import Command
from amigo_local.presentation.training import standing, training_facts
from amigo_local.tui.past_run import read_past_run
from amigo_local.tui.screens.base import AmigoScreen
from amigo_local.tui.screens.confirm import Confirm
from amigo_local.tui.screens.pick_row import PickRow
from amigo_local.tui.widgets.record_log import RecordLog
from amigo_local.tui.widgets.training_curves import TrainingCurves
from amigo_local.tui.widgets.training_head import TrainingFacts, TrainingHead

_NOTHING = """\
Nothing was trained yet.

A training that runs, here or elsewhere, shows here by itself. Begin one on the Loop screen (1), or on a command line: \
amigo-local train RECIPE. With g you look at an older run."""


class TrainScreen(AmigoScreen):
    NAME = "train"
    DEFAULT_CSS = """
    TrainScreen {
        TrainingHead { padding: 0 1; }
        #past { height: auto; padding: 0 1; color: $warning; display: none; }
        #nothing { height: 1fr; padding: 1 2; color: $text-muted; display: none; }
        #across { padding: 0 1; max-height: 3; display: none; }
        #side { width: 40; border-left: solid $border; }
        #down { padding: 0 1; }
        RecordLog { border-top: solid $border; padding: 0 1; min-height: 3; }
        TrainingCurves { width: 1fr; padding: 0 1; }
        &.-narrow #across { display: block; }
        &.-narrow #down { display: none; }
        &.-narrow #main { layout: vertical; }
        &.-narrow #side { width: 1fr; height: 5; border-left: none; }
        &.-short #side, &.-short #small { display: none; }
        &.-short #across { max-height: 1; }
        &.-empty #main, &.-empty #across { display: none; }
        &.-empty #nothing { display: block; }
    }
    """
    HORIZONTAL_BREAKPOINTS = [(0, "-narrow"), (100, "-wide")]
    VERTICAL_BREAKPOINTS = [(0, "-short"), (18, "-high")]
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("space", "tell('pause')", "Pause"),
        Binding("space", "tell('continue')", "Continue"),
        Binding("s", "tell('stop')", "Stop at checkpoint"),
        Binding("x", "cancel", "Cancel"),
        Binding("r", "resume", "Resume"),
        Binding("n", "step", "Other recipe"),
        Binding("g", "pick", "Older run"),
        Binding("escape", "back", "Back"),
    ]

    def __init__(self) -> None:
        super().__init__()
        self._past: RunState | None = None
        """An older run that is looked at instead of the followed one."""
        self._chosen: tuple[str, str] | None = None
        """Recipe and fingerprint of the training whose figures are shown; None: the one at work."""
        self._logged: tuple[str, str] = ("", "")
        self._logged_seq = -1
        self._offered: object = None
        """What the keys in the footer depend on: making it anew takes longer than all the rest."""

    def body(self) -> ComposeResult:
        yield Static(id="past", markup=False)
        yield TrainingHead()
        yield TrainingFacts(as_list=False, id="across")
        yield Static(_NOTHING, id="nothing", markup=False)
        with Horizontal(id="main"):
            yield TrainingCurves()
            with Vertical(id="side"):
                yield TrainingFacts(as_list=True, id="down")
                yield RecordLog(with_stage=False)

    # -- What is shown

    @property
    def state(self) -> RunState | None:
        return self._past or self.session.run

    @property
    def live(self) -> bool:
        """Whether the run that is shown goes on now."""
        return self._past is None and self.session.live

    @property
    def stage(self) -> StageState | None:
        """The training whose figures are shown."""
        trainings = self.state.trainings if self.state else []
        for stage in trainings:
            if (stage.of, stage.fingerprint) == self._chosen:
                return stage
        running = [stage for stage in trainings if stage.status == "running"]
        told = [stage for stage in trainings if stage.tells_metrics]
        found = running or told or trainings
        return found[-1] if found else None

    def shown(self) -> None:
        self._draw(back=True)

    def run_updated(self, state: RunState, records: list[Record]) -> None:
        super().run_updated(state, records)
        if self._past is None:
            self._draw()

    def _draw(self, *, back: bool = False) -> None:
        state, stage = self.state, self.stage
        self.set_class(stage is None, "-empty")
        past = self.query_one("#past", Static)
        past.display = self._past is not None
        if self._past:
            past.update(f"An older run: {self._past.title} ({self._past.run_id}); escape goes back")
        head = self.query_one(TrainingHead)
        if state and stage:
            others = len(state.trainings)
            place = f" ({state.trainings.index(stage) + 1} of {others})" if others > 1 else ""
            head.show(f"{stage.of or state.title}{place}", standing(stage, state, self.live))
            facts = training_facts(stage)
            for widget in self.query(TrainingFacts):
                widget.show(facts)
            self.query_one(TrainingCurves).show(state.trainings, stage, back=back)
            self._log(state, stage)
        else:
            running = state.running if state and self.live else None
            head.say(f"{running.stage} comes before training: {running.summary}" if running else "")
        offered = (self.live, state and (state.paused, state.exit_code, len(state.trainings) > 1), self._past is None)
        if offered != self._offered:
            self._offered = offered
            self.refresh_bindings()

    def _log(self, state: RunState, stage: StageState) -> None:
        """What was said while training; the rest is on the Loop screen."""
        log = self.query_one(RecordLog)
        shown = state.run_id, stage.stage
        if shown != self._logged:
            self._logged, self._logged_seq = shown, -1
            log.clear()
        fresh = state.log_after(self._logged_seq)
        self._logged_seq = state.last_seq
        log.add(record for record in fresh if record.stage in (stage.stage, state.verb))

    # -- Keys

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        state = self.state
        paused = bool(state and state.paused)
        if action == "tell":
            wanted = {"pause": not paused, "continue": paused, "stop": True}
            return self.live and wanted[str(parameters[0])]
        if action == "cancel":
            return self.live
        if action == "resume":
            return bool(state and state.verb) and not self.live and state is not None and state.exit_code != 0
        if action == "step":
            return bool(state and len(state.trainings) > 1)
        if action == "back":
            return self._past is not None
        return super().check_action(action, parameters)

    def action_tell(self, command: Command) -> None:
        if self.steer(command) and command == "stop":
            self.notify("It ends after the next checkpoint.")

    def action_cancel(self) -> None:
        question = "Cancel the run now?"
        details = "What is done since the last checkpoint is kept as well; r goes on from there."
        self.app.push_screen(Confirm(question, "Cancel it", details), self._cancel)

    def _cancel(self, confirmed: bool | None) -> None:
        if confirmed:
            self.action_tell("cancel")

    def action_resume(self) -> None:
        self.run_worker(self._resume(), group="start", exclusive=True)

    async def _resume(self) -> None:
        state = self.state
        if not state:
            return
        try:
            await self.session.resume(state.run_id)
        except AmigoError as error:
            self.amigo.show_failure(error)
            return
        self._past, self._chosen = None, None

    def action_step(self) -> None:
        state, stage = self.state, self.stage
        if state and stage:
            trainings = state.trainings
            other = trainings[(trainings.index(stage) + 1) % len(trainings)]
            self._chosen = other.of, other.fingerprint
            self._draw()

    def action_pick(self) -> None:
        self.run_worker(self._pick(), group="pick", exclusive=True)

    async def _pick(self) -> None:
        reply = await self.session.ask("runs", {"action": "ls"})
        table = reply.first(Table)
        if table is None:
            if reply.error:
                self.amigo.show_failure(reply.error)
            return
        current = self.state.run_id if self.state else ""
        self.app.push_screen(PickRow("Whose curves?", table, "run", current, newest_first="started"), self._picked)

    def _picked(self, run_id: str | None) -> None:
        if run_id:
            self.run_worker(self._look_back(run_id), group="pick", exclusive=True)

    async def _look_back(self, run_id: str) -> None:
        """The followed run goes on being followed."""
        followed = self.session.run
        past = (
            None
            if followed and followed.run_id == run_id
            else await read_past_run(self.session.workspace.runs_dir / run_id)
        )
        self._past, self._chosen = past, None
        self._draw()

    def action_back(self) -> None:
        self._past, self._chosen = None, None
        self._draw()

    def commands(self) -> Iterable[SystemCommand]:
        yield SystemCommand("Older run", "Show the curves of another run", self.action_pick)


SCREEN = TrainScreen
