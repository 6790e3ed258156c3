"""The model is asked once for every answer, whatever cuts the run, and what runs them is the real sandbox."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from amigo_local.data.candidates import CANDIDATES_FILE, Candidate, read_candidates
from amigo_local.data.pair import Pair
from amigo_local.domain.answer_check import AnswerCheck
from amigo_local.domain.data_source import CandidatesSource, JsonlSource, StdlibSource
from amigo_local.domain.errors import Cancelled
from amigo_local.domain.events import AnyEvent, Note, Progress, Record, StageSkipped, Table
from amigo_local.domain.generation import Answer, GenerationOptions, Message
from amigo_local.domain.settings import OllamaSettings, ProgramSettings
from amigo_local.engine.contract import RecipeRequest
from amigo_local.engine.recipe_chain import load_chain
from amigo_local.engine.runner import Outcome, Runner
from amigo_local.engine.workspace import Workspace
from amigo_local.evaluation.sandbox import Sandbox, open_sandbox
from amigo_local.stages._candidate_answers import DIRECTLY, VERDICTS_FILE, ask, judge, questions
from amigo_local.stages._sets import prepared_sets
from amigo_local.stages.candidates import STAGE, CandidatesParams
from tests.support.tiny_gguf import write_tiny_llama

GOOD, BAD = "def add(a, b):\n    return a + b", "def add(a, b):\n    return a - b"
LOOPS = "def add(a, b):\n    while True:\n        pass"
SOURCE = CandidatesSource(candidates=(StdlibSource(stdlib="all"),), samples=3, seed=5, max_answer_tokens=40)
CHECK = AnswerCheck(skill="writing", entry_point="add", program="assert add(1, 2) == 3")


@pytest.fixture(scope="module")
def sandbox() -> Sandbox:
    opened = open_sandbox()
    if opened.kind != "bubblewrap":
        pytest.skip(f"{opened.statement}: {opened.fix}")
    return opened


def problem(name: str, check: AnswerCheck | None = CHECK) -> Pair:
    return Pair(
        prompt=f"Write add(a, b), {name}.", completion=f"```python\n{GOOD}\n```", source="s", name=name, check=check
    )


def block(code: str) -> str:
    return f"```python\n{code}\n```"


class Scripted:
    """A ChatBackend whose answer is made from the request and the seed."""

    name = "scripted"

    def __init__(self, say: Callable[[str, GenerationOptions], str], fail_at: int | None = None) -> None:
        self._say, self._fail_at = say, fail_at
        self.asked: list[tuple[str, GenerationOptions]] = []
        self.unloaded = 0

    def generate(
        self, model: str, messages: tuple[Message, ...], options: GenerationOptions, on_text: Callable[[str], None]
    ) -> Answer:
        if len(self.asked) == self._fail_at:
            raise Cancelled
        self.asked.append((messages[0].content, options))
        text = self._say(messages[0].content, options)
        for word in text.split():
            on_text(word)
        return Answer(
            text=text,
            prompt_tokens=1,
            answer_tokens=len(text.split()),
            load_seconds=0,
            prompt_seconds=0,
            answer_seconds=1,
            stop_reason="length" if text.endswith("…") else "stop",
        )

    def unload(self, model: str) -> None:
        self.unloaded += 1


def say(request: str, options: GenerationOptions) -> str:
    """Right when it thinks, wrong at temperature 0, else by the seed."""
    if request.endswith(DIRECTLY):
        return block(BAD if options.temperature == 0 else GOOD)
    drafts = f"<think>\nA draft: {block(BAD)}\n</think>\n\nHere:\n{block(GOOD)}"
    return drafts if options.seed == SOURCE.seed else "Then I …"


def candidates(
    folder: Path,
    sandbox: Sandbox,
    backend: Scripted,
    *problems: Pair,
    emit: Callable[[AnyEvent], None] = lambda e: None,
) -> list[Candidate]:
    answers = ask(problems, SOURCE, backend, "model", 512, folder, emit)
    return list(judge(problems, answers, SOURCE, sandbox, folder, emit))


def test_every_problem_is_asked_directly_and_freely_with_seeds_that_are_told(tmp_path: Path, sandbox: Sandbox) -> None:
    backend = Scripted(say)
    (found,) = candidates(tmp_path, sandbox, backend, problem("one"))
    assert [(q.directly, q.temperature, q.seed) for q in questions(SOURCE)] == [
        (True, 0.0, 5),
        (False, 0.8, 5),
        (True, 0.8, 6),
        (False, 0.8, 7),
    ]
    assert [(options.temperature, options.seed) for _, options in backend.asked] == [
        (0.0, 5),
        (0.8, 5),
        (0.8, 6),
        (0.8, 7),
    ]
    assert {(options.max_tokens, options.context_length) for _, options in backend.asked} == {(40, 512)}
    assert [request.endswith(DIRECTLY) for request, _ in backend.asked] == [True, False, True, False]
    assert [(answer.passed, answer.asked_directly, answer.was_cut) for answer in found.answers] == [
        (False, True, False),
        (True, False, False),
        (True, True, False),
        (False, False, True),
    ]
    assert [answer.code.strip() for answer in found.answers] == [BAD, GOOD, GOOD, ""]
    assert found.answers[0].detail.startswith("AssertionError")
    assert found.answers[3].detail == "there is no code in it"
    assert found.direct_pass_rate() == (pytest.approx(1 / 3), 3)
    assert found.is_hard(0.5) is True and found.is_hard(0.3) is False
    assert backend.unloaded == 1


@pytest.mark.parametrize("fail_at", [0, 1, 4, 7])
def test_a_cut_run_asks_nothing_twice_and_ends_the_same(tmp_path: Path, sandbox: Sandbox, fail_at: int) -> None:
    problems = (problem("one"), problem("two"))
    whole = candidates(tmp_path / "whole", sandbox, Scripted(say), *problems)
    cut = Scripted(say, fail_at=fail_at)
    with pytest.raises(Cancelled):
        candidates(tmp_path / "cut", sandbox, cut, *problems)
    assert cut.unloaded == 1
    again = Scripted(say)
    assert candidates(tmp_path / "cut", sandbox, again, *problems) == whole
    assert len(again.asked) == 8 - fail_at


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork: a process that is killed")
def test_a_killed_run_loses_no_answer(tmp_path: Path, sandbox: Sandbox) -> None:
    problems = (problem("one"), problem("two"))

    def die(request: str, options: GenerationOptions) -> str:
        if "two" in request and options.seed == 6:
            os.kill(os.getpid(), signal.SIGKILL)
        return say(request, options)

    child = os.fork()
    if child == 0:
        candidates(tmp_path / "cut", sandbox, Scripted(die), *problems)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    again = Scripted(say)
    assert candidates(tmp_path / "cut", sandbox, again, *problems) == candidates(
        tmp_path / "whole", sandbox, Scripted(say), *problems
    )
    assert [options.seed for _, options in again.asked] == [6, 7]


def test_equal_programs_are_run_once_also_in_a_later_run(tmp_path: Path, sandbox: Sandbox) -> None:
    ran: list[str] = []

    class Counting:
        kind, can_run, statement, fix = sandbox.kind, True, "", ""

        def run(self, program: str) -> object:
            ran.append(program)
            return sandbox.run(program)

    candidates(tmp_path, Counting(), Scripted(say), problem("one"), problem("two"))  # type: ignore[arg-type]
    assert sorted(ran) == sorted([CHECK.program_for(f"{BAD}\n"), CHECK.program_for(f"{GOOD}\n")])
    file = tmp_path / VERDICTS_FILE
    file.write_bytes(file.read_bytes()[:-9])  # torn by a kill
    candidates(tmp_path, Counting(), Scripted(say), problem("one"))  # type: ignore[arg-type]
    assert len(ran) == 3
    assert len([json.loads(line) for line in file.read_bytes().splitlines()]) == 2


def test_what_cant_be_run_isnt_judged(tmp_path: Path, sandbox: Sandbox) -> None:
    class Refusing:
        kind, can_run, statement, fix = "none", False, "no sandbox", "install one"

        def run(self, program: str) -> object:
            raise AssertionError

    unjudged = candidates(tmp_path, Refusing(), Scripted(say), problem("one"))[0]  # type: ignore[arg-type]
    no_program = candidates(tmp_path, sandbox, Scripted(say), problem("two", check=None))[0]
    for found in (unjudged, no_program):
        assert [answer.passed for answer in found.answers] == [None] * 4
        assert found.direct_pass_rate() == (None, 0) and found.is_hard(0.5) is None
        assert found.answers[1].code.strip() == GOOD


def test_what_never_ends_is_stopped_and_told_apart_from_what_is_wrong(tmp_path: Path, sandbox: Sandbox) -> None:
    class Short:
        kind, can_run, statement, fix = sandbox.kind, True, "", ""

        def run(self, program: str) -> object:
            return sandbox.run(program, timeout_seconds=1)

    (found,) = candidates(tmp_path, Short(), Scripted(lambda *_: block(LOOPS)), problem("one"))  # type: ignore[arg-type]
    assert {answer.reason for answer in found.answers} == {"timeout"}
    assert not any(answer.is_wrong for answer in found.answers)


def test_a_cancel_is_heard_in_the_middle_of_a_long_answer(tmp_path: Path, sandbox: Sandbox) -> None:
    heard: list[AnyEvent] = []

    def emit(event: AnyEvent) -> None:
        heard.append(event)
        if len(heard) == 3:
            raise Cancelled

    long = Scripted(lambda *_: "word " * 500)
    with pytest.raises(Cancelled):
        ask((problem("one"),), SOURCE, long, "model", 512, tmp_path, emit)
    assert len(long.asked) == 1 and long.unloaded == 1
    assert all(isinstance(event, Progress) and event.done == 0 for event in heard)


# the whole stage, with a real model (random weights) on the embedded llama.cpp


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiny")
    rows = ({"prompt": f"Add {n}. {'x' * 2000 * (n == 3)}", "completion": block(GOOD)} for n in range(8))
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return write_tiny_llama(folder / "tiny.gguf")


def run_stage(gguf: Path, home: Path, source: CandidatesSource) -> tuple[Outcome, list[Record]]:
    records: list[Record] = []
    stage = dataclasses.replace(STAGE, place="here", steps=None)
    runner = Runner(Workspace(home), ProgramSettings(ollama=OllamaSettings(use=False)), lambda _: stage, records.append)
    return runner.run("candidates", CandidatesParams(ref=str(gguf), source=source)), records


def source_of(gguf: Path, **changes: object) -> CandidatesSource:
    rows = JsonlSource(jsonl=str(gguf.with_name("rows.jsonl")))
    made = CandidatesSource(candidates=(rows,), problems=3, samples=2, max_answer_tokens=12)
    return msgspec.structs.replace(made, **changes)


def test_the_stage_writes_candidates_and_finds_its_answers_again(tiny: Path, tmp_path: Path) -> None:
    outcome, records = run_stage(tiny, tmp_path, source_of(tiny))
    assert outcome.exit_code == 0, outcome.error
    assert outcome.artifact is not None and outcome.artifact.kind == "candidates"
    assert outcome.artifact.figures == {"problems": 3, "problems_run": 0, "hard": 0, "answers": 9, "passed": 0}
    found = list(read_candidates(Path(outcome.artifact.path)))
    assert len(found) == 3 and all(len(each.answers) == 3 for each in found)
    assert len({answer.text for each in found for answer in each.answers}) > 3
    notes = [record.event.text for record in records if isinstance(record.event, Note)]
    assert "3 problems of 7, 1 more are too long" in notes
    table = next(record.event for record in records if isinstance(record.event, Table))
    assert table.rows == (("rows.jsonl", 3, 0, 0, 9, 0, 0, table.rows[0][7]),)

    _, records = run_stage(tiny, tmp_path, source_of(tiny))
    assert any(isinstance(record.event, StageSkipped) for record in records)
    more, records = run_stage(tiny, tmp_path, source_of(tiny, problems=4, pairs=("direct",)))
    assert more.artifact is not None and list(read_candidates(Path(more.artifact.path)))[:3] == found
    journal = next((tmp_path / "cache" / "candidates").glob("*/answers.jsonl"))
    assert len(journal.read_bytes().splitlines()) == 12  # nine before, three of the fourth problem


def test_the_same_seed_gives_the_same_bytes_on_another_home(tiny: Path, tmp_path: Path) -> None:
    contents = []
    for name in ("a", "b"):
        outcome, _ = run_stage(tiny, tmp_path / name, source_of(tiny))
        assert outcome.artifact is not None
        contents.append((Path(outcome.artifact.path) / CANDIDATES_FILE).read_bytes())
    assert contents[0] == contents[1]


def test_no_room_for_an_answer_is_said(tiny: Path, tmp_path: Path) -> None:
    outcome, _ = run_stage(tiny, tmp_path, source_of(tiny, max_answer_tokens=512))
    assert outcome.exit_code == 2 and outcome.error is not None
    assert "leaves room for an answer of 512 tokens in 512" in outcome.error.message
    assert "max_answer_tokens" in outcome.error.hint


def test_a_recipe_without_candidates_is_told_what_to_add(tmp_path: Path, tiny: Path) -> None:
    recipe = tmp_path / "plain.yaml"
    recipe.write_text(f"name: plain\nmodel: {{source: {tiny}}}\ndata: {{sources: [{{stdlib: all}}]}}\n")
    runner = Runner(
        Workspace(tmp_path / "home"), ProgramSettings(ollama=OllamaSettings(use=False)), lambda _: STAGE, lambda _: None
    )
    outcome = runner.run("candidates", RecipeRequest(recipe=(str(recipe),)))
    assert outcome.exit_code == 2 and outcome.error is not None
    assert "plain: no source asks the model for candidates" in outcome.error.message


def test_answers_that_could_not_be_run_are_judged_once_they_can(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sandbox: Sandbox
) -> None:
    with monkeypatch.context() as poor:
        poor.setenv("PATH", "/nowhere")  # no bubblewrap
        without, _ = run_stage(tiny, tmp_path, source_of(tiny))
    made, records = run_stage(tiny, tmp_path, source_of(tiny))
    assert made.artifact is not None and without.artifact is not None
    assert made.artifact.sources["programs run"] == "yes" and made.artifact.path != without.artifact.path
    assert not any(isinstance(record.event, StageSkipped) for record in records)


def test_the_verb_asks_as_the_loop_does_whatever_is_made_of_the_answers(tiny: Path, tmp_path: Path) -> None:
    recipe = tmp_path / "pairs.yaml"
    source = f"{{candidates: [{{jsonl: {tiny.with_name('rows.jsonl')}}}], pairs: [direct], limit: 3, problems: 2}}"
    recipe.write_text(
        f"name: pairs\nmodel: {{source: {tiny}}}\ntrain: {{method: dpo}}\ndata: {{sources: [{source}]}}\n"
    )
    request = RecipeRequest(recipe=(str(recipe),))
    settings = ProgramSettings(ollama=OllamaSettings(use=False))
    context = Runner(Workspace(tmp_path / "home"), settings, lambda _: STAGE, lambda _: None).context("candidates")
    assert STAGE.steps is not None
    (alone,) = STAGE.steps(request, context)
    (recipe_read,) = (stage.recipe for stage in load_chain(request.recipe).stages)
    steps = prepared_sets([recipe_read], str(tiny), "tokenizer", context, planning=False)
    assert next(steps) == alone
