from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from amigo_local.domain.code_start import find_code
from amigo_local.domain.errors import AmigoError, Cancelled, InputError
from amigo_local.domain.events import AnyEvent, GenerationFinished, Note, Progress, Table, TokenGenerated
from amigo_local.domain.generation import Answer, GenerationOptions, Message
from amigo_local.domain.recipe import EvaluateSettings
from amigo_local.evaluation.held_out import Request
from amigo_local.evaluation.humaneval import Problem
from amigo_local.evaluation.report import report_text, write_report
from amigo_local.evaluation.results import EvaluationResult
from amigo_local.evaluation.sandbox import Sandbox, open_sandbox
from amigo_local.evaluation.suite import run_suites

HELD_OUT = [Request(prompt=f"Write a Python function `f{number}(x)` that returns x.") for number in range(12)]
OPTIONS = GenerationOptions(max_tokens=64, seed=3, context_length=2048)
SETTINGS = EvaluateSettings(directness_prompts=6, max_answer_tokens=64, seed=3)


class ScriptedBackend:
    """A ChatBackend whose models are functions from the request to the answer; a word is a token."""

    name = "scripted backend"

    def __init__(self, models: dict[str, Callable[[str], str]], fail_at: int | None = None) -> None:
        self._models, self._fail_at = models, fail_at
        self.asked: list[tuple[str, tuple[Message, ...], GenerationOptions]] = []
        self.loaded: set[str] = set()
        self.most_loaded = 0
        self.loads = 0

    def generate(
        self, model: str, messages: tuple[Message, ...], options: GenerationOptions, on_text: Callable[[str], None]
    ) -> Answer:
        if self._fail_at is not None and len(self.asked) >= self._fail_at:
            raise AmigoError("the server went away", "start it again")
        self.asked.append((model, messages, options))
        cold = model not in self.loaded
        self.loads += cold
        self.loaded.add(model)
        self.most_loaded = max(self.most_loaded, len(self.loaded))
        text = self._models[model](messages[-1].content)
        words = text.split(" ")
        for position, word in enumerate(words):
            on_text(word if position == 0 else f" {word}")
        found = find_code(text).found_at
        return Answer(
            text=text,
            prompt_tokens=7,
            answer_tokens=len(words),
            load_seconds=1.5 if cold else 0.0,
            prompt_seconds=0.1,
            answer_seconds=0.5,
            stop_reason="stop",
            tokens_before_code=None if found is None else len(text[:found].split()),
        )

    def unload(self, model: str) -> None:
        self.loaded.discard(model)


def problem(number: int) -> Problem:
    return Problem(
        task_id=f"Tiny/{number}",
        prompt=f'def add{number}(x):\n    """ Return x + {number}.\n    """\n',
        entry_point=f"add{number}",
        canonical_solution=f"    return x + {number}\n",
        test=f"def check(candidate):\n    assert candidate(1) == {1 + number}\n",
    )


PROBLEMS = [problem(number) for number in range(4)]


def wordy(request: str) -> str:
    for item in PROBLEMS:
        if item.entry_point in request:  # half of them right
            body = item.canonical_solution if int(item.task_id[-1]) % 2 else "    return None\n"
            return f"Sure, I can do that. Here it is:\n\n```python\n{item.prompt}{body}```"
    return "That is a good question. I don't know."


def direct(request: str) -> str:
    for item in PROBLEMS:
        if item.entry_point in request:
            return f"```python\n{item.prompt}{item.canonical_solution}```"
    return "```python\ndef f(x):\n    return x\n```"


def backend(**changes: int) -> ScriptedBackend:
    return ScriptedBackend({"old": wordy, "new": direct}, **changes)


def run(
    tmp_path: Path, sandbox: Sandbox, served: ScriptedBackend, emit: Callable[[AnyEvent], None] = lambda event: None
) -> EvaluationResult:
    return run_suites(
        SETTINGS, served, ("old", "new"), HELD_OUT, sandbox, emit, tmp_path, context_length=2048, problems=PROBLEMS
    )


def test_the_figures_of_two_scripted_models_are_exact(tmp_path: Path, sandbox: Sandbox) -> None:
    result = run(tmp_path, sandbox, backend())
    assert result.labels == ("before", "after")
    assert [suite.name for suite in result.suites] == ["directness", "humaneval"]
    figures = result.figures()
    assert figures["directness.before.with_code_share"] == 0.0 and figures["directness.after.at_once_share"] == 1.0
    assert figures["directness.before.median_tokens_before_code"] is None
    assert figures["directness.after.median_tokens_before_code"] == 0.0
    assert figures["directness.at_once_p_value"] == pytest.approx(2 / 2**6)
    assert figures["humaneval.before.median_tokens_before_code"] == 8.0
    assert (figures["humaneval.before.pass_at_1"], figures["humaneval.after.pass_at_1"]) == (0.5, 1.0)
    assert figures["humaneval.pass_at_1_p_value"] == 0.5
    assert figures["before.load_seconds"] == 1.5
    assert figures["directness.before.cut_share"] == 0.0 and figures["directness.after.only_code_share"] == 1.0
    assert figures["sandbox"] == sandbox.statement
    asked = [request.prompt for request in (*HELD_OUT[:6], *PROBLEMS)]
    words = sum(len(wordy(request).split(" ")) for request in asked)
    assert figures["before.tokens_per_second"] == pytest.approx(words / 5.0, abs=0.01)
    verdicts = [judged.verdict for judged in result.suites[1].answers[0]]
    assert verdicts[1] == "passed" and verdicts[0].startswith("failed: AssertionError")


def test_one_model_is_loaded_at_a_time_and_each_once(tmp_path: Path, sandbox: Sandbox) -> None:
    served = backend()
    run(tmp_path, sandbox, served)
    assert (served.most_loaded, served.loads, served.loaded) == (1, 2, set())
    assert [model for model, _, _ in served.asked] == ["old"] * 10 + ["new"] * 10
    assert {options for _, _, options in served.asked} == {OPTIONS}
    assert [messages[-1].content for _, messages, _ in served.asked[:6]] == [r.prompt for r in HELD_OUT[::2]]


def test_tokens_and_progress_are_emitted_with_side_and_prompt(tmp_path: Path, sandbox: Sandbox) -> None:
    events: list[AnyEvent] = []
    result = run(tmp_path, sandbox, backend(), events.append)
    for side, model in enumerate(("old", "new")):
        said = [event for event in events if isinstance(event, TokenGenerated) and event.side == side]
        ends = [event for event in events if isinstance(event, GenerationFinished) and event.side == side]
        assert [event.prompt_index for event in ends] == list(range(10))
        assert {event.model for event in ends} == {model}
        text = "".join(event.text for event in said if event.prompt_index == 6)
        assert text == result.suites[1].answers[side][0].text
    progress = [event for event in events if isinstance(event, Progress)]
    assert {event.label for event in progress} == {"answering", "running answers (bubblewrap)"}
    assert progress[-1].done == progress[-1].total == 8


def test_a_killed_evaluation_goes_on_where_it_was_and_gives_the_same(tmp_path: Path, sandbox: Sandbox) -> None:
    whole = run(tmp_path / "whole", sandbox, backend())
    for fail_at in (0, 3, 10, 13):
        folder = tmp_path / str(fail_at)
        broken = backend(fail_at=fail_at)
        with pytest.raises(AmigoError, match="went away"):
            run(folder, sandbox, broken)
        assert broken.loaded == set()
        events: list[AnyEvent] = []
        again = backend()
        result = run(folder, sandbox, again, events.append)
        assert len(again.asked) == 20 - fail_at
        assert any(isinstance(event, Note) and f"{fail_at} answers" in event.text for event in events) == (fail_at > 0)
        strip = [[j.text for side in suite.answers for j in side] for suite in result.suites]
        assert strip == [[j.text for side in suite.answers for j in side] for suite in whole.suites]
    finished = backend()
    run(tmp_path / "whole", sandbox, finished)
    assert finished.asked == []


def test_a_torn_last_line_is_asked_again(tmp_path: Path, sandbox: Sandbox) -> None:
    run(tmp_path, sandbox, backend())
    path = tmp_path / "answers.jsonl"
    content = path.read_bytes()
    path.write_bytes(content[:-20])
    served = backend()
    run(tmp_path, sandbox, served)
    assert len(served.asked) == 1
    assert path.read_bytes().splitlines()[:19] == content.splitlines()[:19]
    assert len([json.loads(line) for line in path.read_bytes().splitlines()]) == 20


def test_another_question_or_option_is_not_answered_from_the_journal(tmp_path: Path, sandbox: Sandbox) -> None:
    run(tmp_path, sandbox, backend())
    served = backend()
    changed = msgspec.structs.replace(SETTINGS, max_answer_tokens=65, suites=("directness",))
    run_suites(changed, served, ("old", "new"), HELD_OUT, sandbox, lambda e: None, tmp_path, context_length=2048)
    assert len(served.asked) == 12


def test_cancelling_in_the_middle_of_an_answer_frees_the_model_and_keeps_the_rest(
    tmp_path: Path, sandbox: Sandbox
) -> None:
    def cancel(event: AnyEvent) -> None:
        if isinstance(event, TokenGenerated) and event.prompt_index == 2:
            raise Cancelled

    served = backend()
    with pytest.raises(Cancelled):
        run(tmp_path, sandbox, served, cancel)
    assert served.loaded == set()
    assert len((tmp_path / "answers.jsonl").read_bytes().splitlines()) == 2


@pytest.fixture
def no_sandbox(tmp_path_factory: pytest.TempPathFactory) -> Sandbox:
    return open_sandbox(bubblewrap=str(tmp_path_factory.mktemp("empty") / "bwrap"))


def test_without_a_sandbox_correctness_is_left_out_and_said_so(tmp_path: Path, no_sandbox: Sandbox) -> None:
    events: list[AnyEvent] = []
    result = run(tmp_path, no_sandbox, backend(), events.append)
    assert [suite.name for suite in result.suites] == ["directness"]
    note = next(event for event in events if isinstance(event, Note))
    assert note.level == "problem" and "humaneval is left out" in note.text and note.fix
    assert "no generated code was run" in report_text(result)
    with pytest.raises(InputError, match="nothing to evaluate"):
        run_suites(
            EvaluateSettings(suites=("humaneval",)), backend(), ("old",), [], no_sandbox, events.append, tmp_path
        )


def test_directness_without_requests_is_a_plain_error(tmp_path: Path, sandbox: Sandbox) -> None:
    with pytest.raises(InputError, match="no held-out requests") as error:
        run_suites(SETTINGS, backend(), ("old",), [], sandbox, lambda event: None, tmp_path)
    assert "held_out_fraction" in error.value.hint


def test_tables_carry_every_side_and_its_interval(tmp_path: Path, sandbox: Sandbox) -> None:
    tables = {table.title: table for table in run(tmp_path, sandbox, backend()).tables()}
    assert list(tables) == [
        "Directness on held-out prompts",
        "Directness on humaneval prompts",
        "Correctness on humaneval",
        "Speed, served by scripted backend",
    ]
    assert tables["Correctness on humaneval"].rows == (
        ("before", 4, 2, 0.5, "15–85 %", 8.0),
        ("after", 4, 4, 1.0, "51–100 %", 0.0),
    )
    for table in tables.values():
        assert isinstance(table, Table)
        assert all(len(row) == len(table.columns) for row in table.rows)


def test_the_report_says_what_was_found_and_where_everything_is(tmp_path: Path, sandbox: Sandbox) -> None:
    result = run(tmp_path, sandbox, backend())
    path = tmp_path / "report.md"
    write_report(
        result, path, "Demo", {"old file": 5 * 2**20}, {"adapter": "runs/x/adapter"}, {"KL of the export": "0.003"}
    )
    text = path.read_text(encoding="utf-8")
    assert text.startswith("# Demo\n")
    assert "- before: `old`\n- after: `new`\n- served by scripted backend" in text
    assert f"generated code: {sandbox.statement}" in text
    assert "after begins with code in 6 of 6 answers, before in 0 (better on 6, worse on 0, p = 0.031)" in text
    assert "after passes 4 of 4 problems, before 2 (better on 2, worse on 0, p = 0.5)" in text
    assert "| old file | 5.0 MiB |" in text
    assert "- adapter: `runs/x/adapter`" in text and "- KL of the export: 0.003" in text
    assert text.count("before (no code, ") == text.count("after (code at once, ") == 3
    assert not list(tmp_path.glob("*.partial"))


def test_answers_full_of_fences_and_pipes_cannot_break_the_report(tmp_path: Path, sandbox: Sandbox) -> None:
    served = ScriptedBackend({"a|b": lambda request: "~~~\n# Not a heading\n~~~~\n" + "x " * 2000})
    settings = EvaluateSettings(suites=("directness",), directness_prompts=1)
    result = run_suites(settings, served, ("a|b",), HELD_OUT, sandbox, lambda event: None, tmp_path)
    text = report_text(result)
    assert "~~~~~text\n~~~\n# Not a heading\n~~~~\n" in text
    assert "more characters)" in text
    assert "| a\\|b |" in text
    assert result.labels == ("a|b",) and "p = " not in text


def test_results_survive_json(tmp_path: Path, sandbox: Sandbox) -> None:
    result = run(tmp_path, sandbox, backend())
    assert msgspec.json.decode(msgspec.json.encode(result), type=EvaluationResult) == result
