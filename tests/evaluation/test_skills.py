from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec
import pytest

from amigo_local.domain.answer_check import AnswerCheck
from amigo_local.domain.code_start import find_code
from amigo_local.domain.events import AnyEvent, Note
from amigo_local.domain.generation import Answer, GenerationOptions, Message
from amigo_local.domain.name_use import names_used
from amigo_local.domain.reasoning_chain import has_chain
from amigo_local.domain.recipe import EvaluateSettings, Suite
from amigo_local.evaluation.held_out import (
    Request,
    plain_requests,
    requests_for,
)
from amigo_local.evaluation.intervals import bootstrap_mean, difference, mean_share
from amigo_local.evaluation.report import report_text
from amigo_local.evaluation.results import EvaluationResult
from amigo_local.evaluation.sandbox import Sandbox, open_sandbox
from amigo_local.evaluation.skills import answer_code, is_unchanged, names_share, selectivity
from amigo_local.evaluation.statistics import wilson
from amigo_local.evaluation.suite import run_suites


class Scripted:
    """A ChatBackend that answers from a table; counts how often each request came."""

    name = "scripted backend"

    def __init__(self, answers: dict[str, dict[str, str]]) -> None:
        self._answers = answers
        self.asked: list[str] = []

    def generate(
        self, model: str, messages: tuple[Message, ...], options: GenerationOptions, on_text: Callable[[str], None]
    ) -> Answer:
        prompt = messages[-1].content
        self.asked.append(prompt)
        text = self._answers[model][prompt]
        on_text(text)
        found = find_code(text).found_at
        return Answer(
            text=text,
            prompt_tokens=5,
            answer_tokens=len(text.split()),
            load_seconds=0.0,
            prompt_seconds=0.1,
            answer_seconds=0.5,
            stop_reason="stop",
            tokens_before_code=None if found is None else len(text[:found].split()),
        )

    def unload(self, model: str) -> None:
        pass


def fenced(code: str) -> str:
    return f"```python\n{code.strip()}\n```"


def context_request(number: int) -> Request:
    code = f"def area{number}(shape):\n    return scale(measure(shape), UNIT)\n"
    return Request(
        prompt=f"# geometry.py\nUNIT = 3\ndef measure(s): ...\n# more.py\ndef scale(x, by): ...\n\nWrite area{number}.",
        completion=fenced(code),
        source="stdlib",
        name=f"geometry.area{number}",
        check=AnswerCheck(skill="context", entry_point=f"area{number}", names=("measure", "scale", "UNIT")),
        completion_start=40,
    )


def bug_request(number: int) -> Request:
    buggy = f"def add{number}(x):\n    # adds\n    return x - {number}\n"
    return Request(
        prompt=f"This fails:\n\n{fenced(buggy)}\n\nExpected {1 + number}.",
        completion=f"`-` must be `+`.\n\n{fenced(buggy.replace(' - ', ' + '))}",
        check=AnswerCheck(
            skill="debugging", entry_point=f"add{number}", program=f"assert add{number}(1) == {1 + number}\n"
        ),
    )


def problem_request(number: int, hard: bool) -> Request:
    code = f"def task{number}():\n    return {number}\n"
    check = AnswerCheck(
        skill="writing", entry_point=f"task{number}", program=f"assert task{number}() == {number}\n", hard=hard
    )
    return Request(prompt=f"Write task{number}, which returns {number}.", completion=fenced(code), check=check)


CONTEXT = [context_request(number) for number in range(1, 5)]
BUGS = [bug_request(number) for number in range(1, 7)]
PROBLEMS = [problem_request(number, hard=number > 3) for number in range(1, 7)]
POOL = [*CONTEXT, *BUGS, *PROBLEMS]
THOUGHT = "<think>\nFirst I look at what is asked.\n</think>\n\n"
ALL: tuple[Suite, ...] = ("context", "debugging", "reasoning")


def evaluate(
    tmp_path: Path,
    sandbox: Sandbox,
    models: dict[str, Callable[[Request], str]],
    suites: Sequence[Suite] = ALL,
    held_out: Sequence[Request] = (),
    notes: list[AnyEvent] | None = None,
) -> EvaluationResult:
    table = {name: {r.prompt: answer(r) for r in (*POOL, *held_out)} for name, answer in models.items()}
    emit = (lambda event: None) if notes is None else notes.append
    settings = EvaluateSettings(suites=tuple(suites), directness_prompts=4, skill_prompts=24)
    return run_suites(settings, Scripted(table), tuple(table), held_out, sandbox, emit, tmp_path, skills=POOL)


def reference(request: Request) -> str:
    assert request.check
    return (THOUGHT if request.check.hard else "") + request.completion


def given_back(request: Request) -> str:
    """The code of the request as it stands, which is a bug given back, and nothing of a context."""
    return f"Here it is:\n\n{request.prompt}"


def test_references_have_every_skill_and_what_was_given_back_none(tmp_path: Path, sandbox: Sandbox) -> None:
    result = evaluate(tmp_path, sandbox, {"reference": reference, "back": given_back})
    assert [(suite.name, len(suite.prompts)) for suite in result.suites] == [
        ("context", 4),
        ("debugging", 6),
        ("reasoning", 6),
    ]
    figures = result.figures()
    assert figures["context.before.names_used_share"] == figures["context.before.all_names_share"] == 1.0
    assert figures["context.after.names_used_share"] == figures["context.after.any_name_share"] == 0.0
    assert (figures["debugging.before.fixed_share"], figures["debugging.after.fixed_share"]) == (1.0, 0.0)
    assert (figures["debugging.before.unchanged_share"], figures["debugging.after.unchanged_share"]) == (0.0, 1.0)
    assert (figures["reasoning.before.selectivity"], figures["reasoning.after.selectivity"]) == (1.0, 0.0)
    assert figures["reasoning.before.hard_pass_at_1"] == figures["reasoning.before.easy_pass_at_1"] == 1.0
    assert figures["reasoning.after.hard_pass_at_1"] == 0.0
    assert msgspec.json.decode(msgspec.json.encode(result), type=EvaluationResult) == result


def test_the_report_has_a_table_and_a_finding_for_each_skill(tmp_path: Path, sandbox: Sandbox) -> None:
    result = evaluate(tmp_path, sandbox, {"back": given_back, "reference": reference})
    text = report_text(result)
    tables = {table.title: table for table in result.tables()}
    assert list(tables)[:3] == [
        "Context: use of what the request supplies",
        "Debugging: bugs mended",
        "Reasoning: thought where it is needed",
    ]
    assert tables["Debugging: bugs mended"].rows == (
        ("before", 6, 0, 0.0, "0–39 %", 1.0, 0.0),
        ("after", 6, 6, 1.0, "61–100 %", 0.0, 0.0),
    )
    assert tables["Reasoning: thought where it is needed"].rows[1][5] == "+100 pt (+21 to +100)"
    assert all(len(row) == len(table.columns) for table in tables.values() for row in table.rows)
    assert "- debugging: after mends 6 of 6 (61–100 %), before 0 of 6 (better on 6, worse on 0, p = 0.031)" in text
    assert "| debugging | mends 0 of 6 (0–39 %) | mends 6 of 6 (61–100 %) | 6 | 0 | 0.031 |" in text
    assert ", the bug as it was" in text and "100% of the supplied names used" in text and ", thinks first" in text


def test_requests_that_can_be_run_show_whether_direct_code_is_right(tmp_path: Path, sandbox: Sandbox) -> None:
    plain = [Request(prompt=f"Write f{number}.", completion=fenced(f"def f{number}(): pass")) for number in range(4)]
    result = evaluate(tmp_path, sandbox, {"m": lambda r: r.completion}, ("directness",), plain)
    suite = result.suites[0]
    assert suite.prompts == (*(r.prompt for r in plain), *(r.prompt for r in PROBLEMS[:3])), "hard ones deserve thought"
    assert [answer.passed for answer in suite.answers[0]] == [None] * 4 + [True] * 3
    assert result.figures()["directness.m.pass_at_1"] == 1.0
    correctness = next(table for table in result.tables() if table.title.startswith("Correctness"))
    assert correctness.rows[0][1:4] == (3, 3, 1.0)


def test_a_request_that_two_suites_have_in_common_is_asked_once(tmp_path: Path, sandbox: Sandbox) -> None:
    served = Scripted({"m": {r.prompt: r.completion for r in PROBLEMS}})
    settings = EvaluateSettings(suites=("directness", "reasoning"), directness_prompts=2)
    result = run_suites(settings, served, ("m",), PROBLEMS, sandbox, lambda e: None, tmp_path, skills=PROBLEMS)
    assert sorted(served.asked) == sorted(r.prompt for r in PROBLEMS)
    assert [len(suite.prompts) for suite in result.suites] == [3, 6]
    assert result.speed(0).answer_tokens == sum(len(r.completion.split()) for r in PROBLEMS)


def test_a_suite_without_requests_is_left_out_and_said_so(tmp_path: Path, sandbox: Sandbox) -> None:
    events: list[AnyEvent] = []
    settings = EvaluateSettings(suites=("context", "debugging"))
    served = Scripted({"m": {r.prompt: r.completion for r in BUGS}})
    result = run_suites(settings, served, ("m",), [], sandbox, events.append, tmp_path, skills=BUGS)
    assert [suite.name for suite in result.suites] == ["debugging"]
    (note,) = [event for event in events if isinstance(event, Note)]
    assert note.text == "context is left out: no held-out request of the sets shows that skill" and note.fix


def test_without_a_sandbox_only_what_needs_none_is_measured(tmp_path: Path) -> None:
    events: list[AnyEvent] = []
    nothing = open_sandbox(bubblewrap=str(tmp_path / "bwrap"))
    result = evaluate(tmp_path, nothing, {"m": reference}, notes=events)
    assert [suite.name for suite in result.suites] == ["context", "reasoning"]
    assert result.suites[1].passed(0) is None
    assert any(isinstance(event, Note) and "debugging is left out" in event.text for event in events)


NAMES = ("helper", "LIMIT", "Shape", "clip", "pkg.deep.call", "close")


@pytest.mark.parametrize(
    ("code", "used"),
    [
        ("def f(x):\n    return helper(x, LIMIT)", ("helper", "LIMIT")),
        ("def f(x: Shape) -> Shape:\n    return x", ("Shape",)),
        ("from pkg import helper\ndef f(x):\n    return helper(x)", ("helper",)),
        ("def f(x):\n    from pkg import helper\n    return helper(x)", ("helper",)),
        ("from pkg import helper\ndef f(x):\n    return x", ()),  # imported and never used
        (
            "try:\n    import helper\nexcept ImportError:\n    helper = None\ndef f(x):\n    return helper(x)",
            ("helper",),
        ),
        ("def helper(x):\n    return x\ndef f(x):\n    return helper(x)", ()),  # a copy of its own
        ("LIMIT = 3\ndef f(x):\n    return x < LIMIT", ()),
        ("def f(helper):\n    return helper(1)", ()),  # a parameter
        ("def f(x):\n    helper = len\n    return helper(x)", ()),
        ("def f(x):\n    return [helper for helper in x]", ()),
        ("def f(x):\n    def g():\n        return helper(x)\n    return g", ("helper",)),
        ("class A(Shape):\n    limit = LIMIT\n    def close(self):\n        return self.close()", ("LIMIT", "Shape")),
        ("def f(x):\n    x.close()\n    return x.clip(1)", ("clip", "close")),
        ("def f(x):\n    x.clip = 1", ()),  # written, not read
        ("import pkg\ndef f():\n    return pkg.deep.call()", ("pkg.deep.call",)),
        ("def f(pkg):\n    return pkg.deep.call()", ()),
        ('def f():\n    """helper(LIMIT)"""\n    # Shape', ()),
        ("def f(x):\n    return helper(x", ()),
        ("nonlocal helper\nhelper()", ()),
        ("def f(x):\n    return '\\d' + helper(x)", ("helper",)),  # a SyntaxWarning isn't ours to show
    ],
)
def test_a_supplied_name_counts_where_it_is_read_from_outside(code: str, used: tuple[str, ...]) -> None:
    assert sorted(names_used(code, NAMES)) == sorted(used)
    assert names_share(code, NAMES) == len(used) / len(NAMES)


def test_a_half_used_context_is_half_a_score(tmp_path: Path, sandbox: Sandbox) -> None:
    def answer(request: Request) -> str:
        assert request.check
        name = request.check.entry_point
        return {
            "area1": fenced("def area1(s):\n    return measure(s)"),  # one of three
            "area2": fenced("def area2(s):\n    return scale(measure(s), UNIT)"),
            "area3": "You could use measure, scale and UNIT.",
        }.get(name, fenced(f"def {name}(s):\n    return scale(measure(s), 3"))  # doesn't parse

    use = evaluate(tmp_path, sandbox, {"m": answer}, ("context",)).suites[0].context_use(0)
    assert use is not None
    assert (use.answers, use.used.share, use.any_used.share, use.all_used.share) == (4, pytest.approx(1 / 3), 0.5, 0.25)
    # Wilson's formula by hand: p = 1/3, n = 4, z² = 3.8415: middle 0.8135 / 1.9604, half 0.6663 / 1.9604.
    assert (use.used.low, use.used.high) == (pytest.approx(0.0751, abs=1e-4), pytest.approx(0.7549, abs=1e-4))


@pytest.mark.parametrize(
    ("answer", "unchanged"),
    [
        ("def add1(x):\n    return x - 1", True),  # only the comment is gone
        ("def add1( x ):\n        return x-1   # as before", True),
        ("import os\ndef add1(x):\n    return x - 1", True),
        ("def add1(x):\n    return x + 1", False),
        ("def add1(y):\n    return y - 1", False),
        ("def add1(x", False),
    ],
)
def test_a_bug_is_unchanged_whatever_its_spaces_and_comments(answer: str, unchanged: bool) -> None:
    assert is_unchanged(answer, BUGS[0].prompt, "add1") is unchanged


def test_code_is_found_by_its_function_and_else_in_every_block() -> None:
    text = "One:\n```python\na = 1\n```\nTwo:\n```python\ndef f():\n    return a\n```\n"
    assert answer_code(text, AnswerCheck(skill="debugging", entry_point="f")) == "def f():\n    return a\n"
    assert answer_code(text, AnswerCheck(skill="context", names=("a",))) == "a = 1\n\ndef f():\n    return a\n"
    assert answer_code("a = 1", AnswerCheck(skill="context", names=("a",))) == "a = 1"


CODE = "```python\nx = 1\n```"


@pytest.mark.parametrize(
    ("text", "chain"),
    [
        (f"<think>\nHm.\n</think>\n{CODE}", True),
        (f"<think>\n\n</think>\n\n{CODE}", False),  # how a template asks for none
        (f"<think>\n</think>\n{'word ' * 41}\n{CODE}", True),
        (f"<think>\nI try ```x``` first.\n</think>\n{CODE}", True),
        (f"I try this.\n</think>\n\n{CODE}", True),  # the opening tag stood in the prompt
        ("<think>\nand never an end", True),
        (f"<|begin_of_thought|>\nHm.\n<|end_of_thought|>\n{CODE}", True),
        (f"[THOUGHT]\nHm.\n[/THOUGHT]\n{CODE}", True),
        (CODE, False),
        (f"Sure! Here it is:\n{CODE}", False),
        (f"{'word ' * 40}\n{CODE}", False),
        (f"{'word ' * 41}\n{CODE}", True),
        (f"{CODE}\n{'word ' * 200}", False),  # an explanation afterwards
        ("word " * 41, True),
        ('```python\ndef f(text):\n    return text.replace("<think>", "").replace("</think>", "")\n```', False),
        ("", False),
        (f"Add them. Wait, floats? They add too.</think>\n{CODE}", True),
        ('```python\nTEXT = """\n<think>\nhm\n</think>\n"""\n```', False),
        (f"### Reasoning\n1. Add.\n\n### Solution\n{CODE}", True),
        (f"**Thought process:**\nAdd.\n\n{CODE}", True),
        (f"Thinking of speed, this is it:\n{CODE}", False),
    ],
)
def test_a_chain_is_thought_before_code_and_no_preamble(text: str, chain: bool) -> None:
    assert has_chain(text) is chain


def test_selectivity_of_pinned_answers() -> None:
    hard = [True] * 10 + [False] * 10
    chains = [True] * 8 + [False] * 2 + [True] * 3 + [False] * 7
    passed = [True, None] * 5 + [False] * 10
    found = selectivity(hard, chains, passed)
    assert (found.hard, found.easy) == (10, 10)
    assert found.hard_with_chain and found.easy_direct and found.selectivity
    assert (found.hard_with_chain.share, found.easy_direct.share) == (0.8, 0.7)
    assert found.selectivity.share == pytest.approx(0.5)
    assert found.hard_passed == wilson(5, 5) and found.easy_passed == wilson(0, 10)
    always, never = (selectivity(hard, [thinks] * 20, [None] * 20).selectivity for thinks in (True, False))
    assert always and never and always.share == never.share == 0
    only_hard = selectivity([True], [True], [None])
    assert only_hard.selectivity is None and only_hard.easy_direct is None and only_hard.hard_passed is None


@pytest.mark.parametrize(
    ("first", "second", "low", "high"),
    [((56, 70), (48, 80), 0.0524, 0.3339), ((9, 10), (3, 10), 0.1705, 0.8090), ((10, 10), (0, 20), 0.6791, 1.0)],
)
def test_the_interval_of_a_difference_is_the_published_one(
    first: tuple[int, int], second: tuple[int, int], low: float, high: float
) -> None:
    """Newcombe 1998, Statistics in Medicine 17:873, table II, method 10."""
    interval = difference(wilson(*first), wilson(*second))
    assert (round(interval.low, 4), round(interval.high, 4)) == (low, high)


def test_the_interval_of_a_mean_is_wilsons_for_counts_and_never_empty() -> None:
    assert mean_share([1.0] * 3 + [0.0] * 7) == wilson(3, 10)
    assert mean_share([1.0] * 6).low == pytest.approx(6 / (6 + 1.96**2), abs=1e-4)


def test_the_bootstrap_is_the_same_every_time_and_as_wide_as_theory_says() -> None:
    values = [float(number % 10) for number in range(100)]
    found = bootstrap_mean(values)
    assert found == bootstrap_mean(values) and found.share == 4.5
    half = 1.96 * (sum((value - 4.5) ** 2 for value in values) / 100) ** 0.5 / 10  # 0.563
    assert found.high - found.share == pytest.approx(half, rel=0.15)
    assert found.share - found.low == pytest.approx(half, rel=0.15)


def test_suites_choose_evenly_and_reasoning_half_of_each() -> None:
    assert requests_for("debugging", POOL, 3) == (BUGS[0], BUGS[2], BUGS[4])
    assert requests_for("context", [*CONTEXT, *CONTEXT], 9) == tuple(CONTEXT), "asked once"
    assert requests_for("reasoning", POOL, 4) == (PROBLEMS[3], PROBLEMS[4], PROBLEMS[0], PROBLEMS[1])
    mostly_easy = [*PROBLEMS[:3], PROBLEMS[5]]
    assert requests_for("reasoning", mostly_easy, 4) == (PROBLEMS[5], *PROBLEMS[:3])
    assert plain_requests(POOL, 99) == (*CONTEXT, *PROBLEMS[:3]), "bugs and hard problems deserve words"
    assert plain_requests(PROBLEMS[3:], 9) == tuple(PROBLEMS[3:])
    no_program = msgspec.structs.replace(BUGS[0], check=AnswerCheck(skill="debugging", entry_point="add1"))
    assert requests_for("debugging", [no_program], 3) == ()
