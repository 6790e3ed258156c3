"""answers: an evaluation that is done is read again; nothing is run."""

from __future__ import annotations

import time
from pathlib import Path

import msgspec
import pytest

from amigo_local.domain.artifact import Artifact
from amigo_local.domain.events import AnswerShown, AnyEvent, StageFailed, Table
from amigo_local.domain.settings import OllamaSettings, ProgramSettings
from amigo_local.engine.runner import Runner
from amigo_local.engine.workspace import Workspace
from amigo_local.evaluation.directness import Opening
from amigo_local.evaluation.results import EvaluationResult, Judged, SuiteResult
from amigo_local.stages import load_stage
from amigo_local.stages.answers import AnswersParams
from tests.support.command_here import amigo_here

PROBLEMS = 164


def judged(text: str, passed: bool | None, before: int | None = 0) -> Judged:
    opening = Opening(before is not None, before == 0, before, before == 0)
    verdict = {True: "passed", False: "failed: AssertionError (line 3)", None: ""}[passed]
    return Judged(text, opening, 40, 20, 0.1, 0.2, 2.0, "stop", passed, verdict)


def evaluation(path: Path) -> EvaluationResult:
    ids = tuple(f"HumanEval/{i}" for i in range(PROBLEMS))
    prompts = tuple(f"def f{i}():\n    ..." for i in range(PROBLEMS))
    before = tuple(judged(f"Sure! {i}\n" + "x" * 2000, i % 2 == 0, 12) for i in range(PROBLEMS))
    after = tuple(judged(f"```python\n{i}\n```", i % 4 != 1) for i in range(PROBLEMS))
    asked = SuiteResult(
        "directness", ("q1", "q2"), ("One?", "Two?"), ((judged("a", None),) * 2, (judged("b", None),) * 2)
    )
    suites = (SuiteResult("humaneval", ids, prompts, (before, after)), asked)
    result = EvaluationResult("llama.cpp", "bubblewrap", ("base", "refined"), ("before", "after"), suites)
    path.mkdir(parents=True)
    (path / "results.json").write_bytes(msgspec.json.encode(result))
    return result


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    workspace = Workspace(tmp_path_factory.mktemp("answers"))
    workspace.prepare()
    for age, name in enumerate(("old", "new")):
        fingerprint = name.ljust(64, "0")
        built = workspace.root / name
        evaluation(built)
        target = workspace.default_path("evaluate", fingerprint)
        workspace.commit(
            Artifact("report", str(target), "sha256:x", 1, "evaluate", fingerprint, created=float(age)), built, target
        )
    return workspace


def ask(home: Workspace, exit_code: int = 0, **params: str | bool) -> list[AnyEvent]:
    events: list[AnyEvent] = []
    settings = ProgramSettings(ollama=OllamaSettings(use=False))
    runner = Runner(home, settings, load_stage, lambda record: events.append(record.event))
    assert runner.run("answers", msgspec.convert(params, AnswersParams)).exit_code == exit_code
    return events


def listed(events: list[AnyEvent]) -> Table:
    return next(event for event in events if isinstance(event, Table) and event.title == "Answers")


def test_by_default_the_tables_of_the_evaluation_come_first_and_then_every_answer(home: Workspace) -> None:
    events = ask(home)
    tables = [event for event in events if isinstance(event, Table)]
    stored = home.default_path("evaluate", "new".ljust(64, "0")) / "results.json"
    expected = msgspec.json.decode(stored.read_bytes(), type=EvaluationResult).tables()
    assert tuple(tables[:-1]) == expected
    assert len(listed(events).rows) == 2 * PROBLEMS + 4
    assert listed(events).rows[1] == ("HumanEval/0", "humaneval", "after", "passed", 40, 0)
    only = [event for event in ask(home, tables=True) if isinstance(event, Table)]
    assert tuple(only) == expected


def test_filters_hold_together(home: Workspace) -> None:
    assert len(listed(ask(home, failed=True)).rows) == 82 + 41
    assert len(listed(ask(home, failed=True, of="after")).rows) == 41
    assert listed(ask(home, failed=True, of="1")).rows == listed(ask(home, failed=True, of="refined")).rows
    row = listed(ask(home, failed=True, of="0")).rows[0]
    assert row == ("HumanEval/1", "humaneval", "before", "failed: AssertionError (line 3)", 40, 12)
    assert [row[3] for row in listed(ask(home, suite="directness", of="before")).rows] == ["not run", "not run"]


def test_one_question_is_shown_with_both_answers_in_full(home: Workspace) -> None:
    shown = [event for event in ask(home, id="HumanEval/3") if isinstance(event, AnswerShown)]
    assert [(each.side, each.label, each.model, each.passed) for each in shown] == [
        (0, "before", "base", False),
        (1, "after", "refined", True),
    ]
    assert shown[0].answer == "Sure! 3\n" + "x" * 2000 and shown[0].prompt == "def f3():\n    ..."
    assert shown[0].verdict == "failed: AssertionError (line 3)"
    assert (shown[0].figures["tokens"], shown[0].figures["tokens_before_code"]) == (40, 12)
    text = amigo_here(home.root, "answers", "--id", "HumanEval/3").stdout
    assert "  def f3():" in text and "Sure! 3" in text and "```python" in text


def test_what_is_not_there_is_told(home: Workspace, tmp_path: Path) -> None:
    def refused(home: Workspace = home, **params: str | bool) -> StageFailed:
        (failed,) = [event for event in ask(home, 2, **params) if isinstance(event, StageFailed)]
        assert failed.hint
        return failed

    assert "the nearest are HumanEval/163" in refused(id="HumanEval/1634").message
    assert refused(suite="contex").hint == "there are: humaneval, directness"
    assert "no model '2'" in refused(of="2").message
    nowhere = [e for e in ask(home, 2, **{"where": "nowhere"}) if isinstance(e, StageFailed)]
    assert "there is no run nowhere" in nowhere[0].message
    assert "there is no evaluation" in refused(Workspace(tmp_path)).message
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "results.json").write_text('{"backend": 1}')
    failed = [e for e in ask(home, 2, **{"where": str(broken)}) if isinstance(e, StageFailed)]
    assert "can't be understood" in failed[0].message


def test_a_whole_humaneval_of_two_models_is_listed_within_a_tenth_of_a_second(home: Workspace) -> None:
    ask(home)
    began = time.perf_counter()
    ask(home)
    assert time.perf_counter() - began < 0.1


def test_evaluations_of_a_home_are_listed_newest_first(tmp_path: Path) -> None:
    nothing = amigo_here(tmp_path, "answers", "--all")
    assert nothing.returncode == 0 and "nothing was evaluated in" in nothing.stdout + nothing.stderr
    workspace = Workspace(tmp_path)
    workspace.prepare()
    for age, refs in enumerate((["old"], ["old", "ollama:new"])):
        built = tmp_path / f"built{age}"
        evaluation(built)
        mark = str(age) * 64
        target = workspace.default_path("evaluate", mark)
        params = {"refs": refs, "settings": {"suites": ["humaneval"], "seed": 0}, "adapter": None}
        workspace.commit(
            Artifact(
                "report", str(target), "sha256:x", 1, "evaluate", mark, run_id=f"r{age}", created=age, params=params
            ),
            built,
            target,
        )
    done = amigo_here(tmp_path, "answers", "--all")
    assert done.returncode == 0
    rows = [line.split("  ") for line in done.stdout.splitlines() if "humaneval" in line]
    assert [next(cell.strip() for cell in row if cell.strip()) for row in rows] == ["old → ollama:new", "old"]
    assert all("humaneval" in " ".join(row) and "artifacts/evaluate-" in row[-1] for row in rows)
