"""The Runner over stages of its own that work in this process: paused, stopped, cancelled, and one step at a time."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from amigo_local.domain.errors import InputError
from amigo_local.domain.events import (
    AnyEvent,
    Note,
    Record,
    RunContinued,
    RunFinished,
    RunPaused,
    StageCancelled,
    StageFinished,
    StageSkipped,
)
from amigo_local.domain.settings import ProgramSettings
from amigo_local.engine.contract import Chain, Params, Stage, StageContext, StageResult, Step
from amigo_local.engine.control import Command, send_command
from amigo_local.engine.journal import JOURNAL_NAME, read_journal
from amigo_local.engine.lock import is_alive
from amigo_local.engine.run_record import read_run
from amigo_local.engine.runner import Outcome, Runner
from amigo_local.engine.workspace import Workspace


class Asked(Params, frozen=True, kw_only=True):
    letters: str = "abc"
    one: bool = False


def _wants_one(asked: Asked) -> bool:
    return asked.one


class Made(Params, frozen=True, kw_only=True):
    letter: str


class Home:
    """Runs of a chain `all`, whose step `make` makes an artifact of each letter, here; `free` makes nothing and holds
    no lock. `at[letter]` is called in the middle of that step of the next run."""

    def __init__(self, root: Path) -> None:
        self.workspace = Workspace(root)
        self.records: list[Record] = []
        self.at: dict[str, Callable[[], object]] = {}
        self._at = self.at
        self.made: list[str] = []
        self.runner = self._runner()

    def _runner(self) -> Runner:
        return Runner(self.workspace, ProgramSettings(), self._load, self.records.append)

    def _load(self, name: str) -> Stage:
        return {
            "make": Stage("make", "Make it.", Made, self._make, produces="report", place="here"),
            "all": Stage("all", "Make all.", Asked, steps=self._steps, one_step=_wants_one),
            "free": Stage("free", "Do it.", Made, self._make, place="here", locks=False, journals=True),
        }[name]

    def _steps(self, asked: Asked, context: StageContext) -> Chain:
        for letter in asked.letters:
            yield Step("make", Made(letter=letter), of=f"recipe {letter}")

    def _make(self, params: Made, context: StageContext) -> StageResult:
        context.progress("making", 0, 2, "pieces")
        self._at.get(params.letter, lambda: None)()
        context.progress("making", 1, 2, "pieces")
        self.made.append(params.letter)
        if context.partial:
            (context.partial / "letter").write_text(params.letter)
        return StageResult()

    def run(self, params: Params, verb: str = "all", resume: str | None = None) -> Outcome:
        self.records.clear()
        self.made.clear()
        self._at, self.at = self.at, {}
        self.runner = self._runner()
        return self.runner.run(verb, params, resume=resume)

    def folder(self, run_id: str) -> Path:
        return self.workspace.runs_dir / run_id

    def events(self, kind: type[AnyEvent]) -> list[AnyEvent]:
        return [record.event for record in self.records if isinstance(record.event, kind)]

    def send(self, command: Command) -> None:
        """As another process does, to the only run that is going on; waits until it was taken."""
        (folder,) = (path for path in self.workspace.runs_dir.iterdir() if is_alive(path))
        send_command(folder, command)
        deadline = time.monotonic() + 10
        while (folder / "control").exists() and time.monotonic() < deadline:
            time.sleep(0.01)


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(tmp_path)


def paused_then(home: Home, command: Command) -> Callable[[], None]:
    """Pauses the run that is in the middle of a step, and goes on with the command once it waits."""

    def later() -> None:
        seen = -1
        while len(home.records) != seen:  # it stands still
            seen = len(home.records)
            time.sleep(0.15)
        home.send(command)

    def pause() -> None:
        home.send("pause")
        while not home.events(RunPaused):
            time.sleep(0.01)
        threading.Thread(target=later).start()

    return pause


def test_a_pause_holds_a_run_at_its_next_event_until_it_is_continued(home: Home) -> None:
    home.at["b"] = paused_then(home, "continue")
    outcome = home.run(Asked())
    assert outcome.exit_code == 0 and home.made == ["a", "b", "c"]
    names = [type(record.event).__name__ for record in home.records]
    # The event at which it waited is told, and nothing behind it.
    assert names[names.index("RunPaused") :][:3] == ["RunPaused", "Progress", "RunContinued"]
    journal = list(read_journal(home.folder(outcome.run_id) / JOURNAL_NAME))
    assert journal == home.records and [record.seq for record in journal] == list(range(len(journal)))
    paused, continued = (
        next(r.time for r in journal if isinstance(r.event, kind)) for kind in (RunPaused, RunContinued)
    )
    worked = sum(event.elapsed_seconds for event in home.events(StageFinished))
    (finished,) = home.events(RunFinished)
    waited = continued - paused
    assert waited > 0.1
    assert worked <= finished.elapsed_seconds + 0.02, "a stage is a part of its run"
    assert finished.elapsed_seconds < journal[-1].time - journal[0].time - waited + 0.05, "a pause counted as work"


def test_a_paused_run_can_be_cancelled(home: Home) -> None:
    home.at["b"] = paused_then(home, "cancel")
    assert home.run(Asked()).exit_code == 130
    assert home.made == ["a"] and home.events(RunContinued) == []
    assert home.run(Asked()).exit_code == 0 and home.made == ["b", "c"]


def test_a_paused_run_that_is_stopped_finishes_what_it_is_at(home: Home) -> None:
    home.at["b"] = paused_then(home, "stop")
    assert home.run(Asked()).exit_code == 130
    assert home.made == ["a", "b"] and len(home.events(RunContinued)) == 1


def test_stop_ends_a_chain_before_its_next_stage_and_the_same_command_goes_on(home: Home) -> None:
    home.at["b"] = lambda: home.send("stop")
    outcome = home.run(Asked())
    assert outcome.exit_code == 130 and outcome.error is None and home.made == ["a", "b"]
    assert [type(r.event) for r in home.records[-2:]] == [StageCancelled, RunFinished]
    assert home.run(Asked()).exit_code == 0
    assert home.made == ["c"] and len(home.events(StageSkipped)) == 2


def test_stop_in_the_last_stage_comes_too_late_to_end_anything(home: Home) -> None:
    home.at["c"] = lambda: home.send("stop")
    assert home.run(Asked()).exit_code == 0 and home.made == ["a", "b", "c"]


def test_a_command_from_before_a_run_begins_anew_is_not_for_it(home: Home) -> None:
    run_id = home.run(Asked(letters="a")).run_id
    send_command(home.folder(run_id), "cancel")
    assert home.run(Asked(letters="ab"), resume=run_id).exit_code == 0


def test_a_cancel_before_the_run_begins_is_heeded(home: Home) -> None:
    home.runner.cancel()
    outcome = home.runner.run("all", Asked())
    assert outcome.exit_code == 130 and home.made == []
    assert isinstance(home.records[-1].event, RunFinished)


def test_one_step_at_a_time_makes_what_a_whole_run_makes(home: Home) -> None:
    for letter, then in (("a", "the next step is make of recipe b"), ("b", "the next step is make of recipe c")):
        assert home.run(Asked(one=True)).exit_code == 0
        assert home.made == [letter] and home.events(Note)[-1].text == then
    for made in (["c"], []):
        assert home.run(Asked(one=True)).exit_code == 0
        assert home.made == made and home.events(Note)[-1].text == "all of it is done"
    assert home.run(Asked()).exit_code == 0 and home.made == []


def test_one_step_names_the_next_that_isnt_done_even_where_what_comes_between_is(home: Home) -> None:
    home.run(Asked(letters="b"))
    home.run(Asked(one=True))
    assert home.made == ["a"] and home.events(Note)[-1].text == "the next step is make of recipe c"
    assert home.events(StageSkipped) == [], "only what comes before the step is told"
    home.run(Asked(one=True))
    assert home.made == ["c"] and [event.of for event in home.events(StageSkipped)] == ["recipe a", "recipe b"]


def test_a_run_goes_on_under_its_id_with_other_params_of_the_verb(home: Home) -> None:
    run_id = home.run(Asked(one=True)).run_id
    assert home.run(Asked(letters="abd"), resume=run_id).run_id == run_id
    assert home.made == ["b", "d"]
    assert read_run(home.workspace, run_id).params == {"letters": "abd", "one": False}
    journal = list(read_journal(home.folder(run_id) / JOURNAL_NAME))
    assert [record.seq for record in journal] == list(range(len(journal)))
    with pytest.raises(InputError, match="there is no run nonsense"):
        home.run(Asked(), resume="nonsense")
    with pytest.raises(InputError, match="is one of `all`, not of `free`"):
        home.run(Made(letter="x"), "free", resume=run_id)


def test_what_is_journalled_without_the_lock_runs_beside_what_holds_it(home: Home) -> None:
    other = Home(home.workspace.root)
    found: list[Outcome] = []
    home.at["b"] = lambda: found.append(other.run(Made(letter="x"), "free"))
    assert home.run(Asked()).exit_code == 0
    assert found[0].exit_code == 0 and other.made == ["x"]
    assert (home.folder(found[0].run_id) / JOURNAL_NAME).is_file() and found[0].run_id.endswith("-free")
    home.at["x"] = lambda: found.append(other.run(Made(letter="x"), "free", resume=found[0].run_id))
    outcome = home.run(Made(letter="x"), "free", resume=found[0].run_id)
    assert outcome.error and "is going on already" in outcome.error.message and len(found) == 1
