"""Each kind of pair, and each reason why an answer gives none."""

from __future__ import annotations

import msgspec
import pytest

from amigo_local.data.candidate_code import same_code, used_names
from amigo_local.data.candidate_pairs import NoPair, answer_of, pair_of
from amigo_local.data.candidates import Candidate, CandidateAnswer
from amigo_local.data.pair import Pair
from amigo_local.domain.answer_check import AnswerCheck
from amigo_local.domain.data_source import PairKind
from amigo_local.domain.verdict import Reason

GOOD, BAD = "def add(a, b):\n    return a + b", "def add(a, b):\n    return a - b"
OTHER = "def add(a, b):\n    total = a\n    total += b\n    return total"
CHECK = AnswerCheck(skill="writing", entry_point="add", program="assert add(1, 2) == 3")
THOUGHT = "Okay, a sum. Wait, of two. " * 8


def block(code: str) -> str:
    return f"```python\n{code}\n```"


def wordy(code: str, before: str = "Sure! Here is a function that adds both:") -> str:
    return f"{before}\n\n{block(code)}\n\nIt adds them."


def thinking(code: str, thought: str = THOUGHT) -> str:
    return f"<think>\n{thought}\n</think>\n\n{block(code)}"


def answer(
    text: str, code: str, passed: bool | None, reason: Reason | None = None, cut: bool = False
) -> CandidateAnswer:
    told = reason or (None if passed is None else "passed" if passed else "failed")
    return CandidateAnswer(
        text=text, code=code, tokens=9, asked_directly=False, passed=passed, reason=told, was_cut=cut
    )


def right(text: str = block(GOOD), code: str = GOOD) -> CandidateAnswer:
    return answer(text, code, True)


def wrong(text: str = block(BAD), code: str = BAD, reason: Reason = "failed", cut: bool = False) -> CandidateAnswer:
    return answer(text, code, False, reason, cut)


def candidate(*answers: CandidateAnswer, **changes: object) -> Candidate:
    problem = Pair(
        prompt="Write add(a, b).",
        completion=block(OTHER),
        source="stdlib",
        module="m",
        name="m.add",
        license="PSF-2.0",
        check=CHECK,
    )
    return Candidate(problem=msgspec.structs.replace(problem, **changes), answers=answers)


def sides(kind: PairKind, given: Candidate) -> tuple[str, str]:
    pair = pair_of(kind, given, 0.5)
    return pair.completion, pair.rejected


def refusal(kind: PairKind, given: Candidate) -> str:
    with pytest.raises(NoPair) as refused:
        pair_of(kind, given, 0.5)
    return str(refused.value)


def test_a_pair_says_what_it_is_and_where_its_problem_is_from() -> None:
    pair = pair_of("correct", candidate(right(), wrong()), 0.5)
    assert (pair.name, pair.source, pair.module, pair.license) == (
        "correct: m.add",
        "candidates: stdlib",
        "m",
        "PSF-2.0",
    )
    assert pair.check == msgspec.structs.replace(CHECK, hard=False, pass_rate=1 / 2, samples=2)


# direct


def test_direct_is_the_block_of_the_wordiest_answer_over_the_whole_of_it() -> None:
    longest = wordy(GOOD, "Of course, I am glad to help. This is a function that adds its two arguments:")
    assert sides("direct", candidate(right(wordy(GOOD)), right(longest), wrong())) == (block(GOOD), longest)


def test_direct_takes_code_that_parses_where_nothing_can_be_run() -> None:
    given = candidate(answer(wordy(GOOD), GOOD, None), check=None)
    assert sides("direct", given) == (block(GOOD), wordy(GOOD))
    broken = "def add(a, b:\n    return a"
    assert refusal("direct", candidate(answer(wordy(broken), "", None), check=None)) == "the code doesn't parse"


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        (candidate(right(), right(block(OTHER), OTHER)), "it is code alone already"),
        (
            candidate(right(f"{wordy(GOOD)}\n{block('add(1, 2)')}")),
            "more than one block: the sides' code would differ",
        ),
        (
            candidate(right(wordy(f"{GOOD}\nprint(add(1, 2))"))),
            "the code that was run isn't the block: the sides' code would differ",
        ),
        (candidate(right(thinking(GOOD))), "it thinks first, which `reasoning` is about"),
        (candidate(right(thinking(GOOD)), right()), "it is code alone already"),
        (candidate(right(), wrong(wordy(BAD))), "it is code alone already"),
        (candidate(wrong(wordy(BAD)), wrong()), "the problem is hard, words may help"),
        (candidate(right("add = lambda a, b: a + b", "add = lambda a, b: a + b")), "no whole block of code"),
    ],
)
def test_direct_drops_what_would_teach_something_else(given: Candidate, reason: str) -> None:
    assert refusal("direct", given) == reason


def test_direct_lets_hard_problems_keep_their_words() -> None:
    assert refusal("direct", candidate(right(wordy(GOOD)), wrong(), wrong())) == "the problem is hard, words may help"
    prompt = "Find the shortest path in a weighted graph in O(E log V) time."
    unmeasured = candidate(answer(wordy(GOOD), GOOD, None), check=None, prompt=prompt)
    assert refusal("direct", unmeasured) == "the problem is hard, words may help"


# correct


def test_correct_is_code_that_passes_over_the_likest_that_fails_both_bare() -> None:
    far = "import operator\n\ndef add(*all):\n    return operator.sub(*all)"
    given = candidate(right(wordy(GOOD)), right(thinking(OTHER), OTHER), wrong(wordy(far), far), wrong(wordy(BAD)))
    assert sides("correct", given) == (block(GOOD), block(BAD))


def test_correct_takes_the_sources_answer_where_none_passes() -> None:
    assert sides("correct", candidate(wrong(), wrong())) == (block(OTHER), block(BAD))


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        (candidate(right(), right()), "no answer fails"),
        (candidate(right(), wrong(reason="timeout")), "it only ran out of time"),
        (candidate(right(), wrong(cut=True)), "it was only cut"),
        (candidate(right(), wrong("I can't.", "")), "no answer fails"),
        (candidate(right(), wrong(code=f"# sums\n{GOOD}\n\n")), "the same code passed once and failed once"),
        (candidate(answer(block(GOOD), GOOD, None), check=None), "no answer could be run"),
        (candidate(wrong(), check=None), "no answer passes"),
    ],
)
def test_correct_drops_what_shows_no_mistake(given: Candidate, reason: str) -> None:
    assert refusal("correct", given) == reason


# context

CONTEXT = AnswerCheck(skill="context", entry_point="total", names=("load", "LIMIT"))
USES = "def total(path):\n    return sum(load(path)[:LIMIT])"
HALF = "def total(path):\n    return sum(load(path))"
NONE = "def total(path):\n    with open(path) as file:\n        return sum(map(int, file))"
REDEFINES = f"LIMIT = 3\n\ndef load(path):\n    return []\n\n{USES}"


def unrun(code: str, cut: bool = False) -> CandidateAnswer:
    return answer(wordy(code), code, None, cut=cut)


def asked_with_context(*answers: CandidateAnswer, reference: str = USES) -> Candidate:
    return candidate(*answers, check=CONTEXT, completion=block(reference))


def test_context_is_code_that_uses_all_it_was_given_over_code_that_uses_least() -> None:
    assert sides("context", asked_with_context(unrun(HALF), unrun(USES), unrun(NONE))) == (block(USES), block(NONE))


def test_context_counts_what_an_answer_defines_anew_as_unused() -> None:
    assert used_names(REDEFINES, CONTEXT.names) == frozenset()
    assert sides("context", asked_with_context(unrun(USES), unrun(REDEFINES)))[1] == block(REDEFINES)


def test_context_takes_the_sources_answer_where_none_uses_all() -> None:
    reference = f"{USES}  # as asked"
    assert sides("context", asked_with_context(unrun(NONE), reference=reference)) == (block(reference), block(NONE))
    failing = answer(block(USES), USES, False)
    assert sides("context", asked_with_context(failing, unrun(NONE), reference=reference))[0] == block(reference)


def test_another_function_than_the_one_asked_for_is_no_side_of_a_pair() -> None:
    other = "def load_all(path):\n    return open(path).read()"
    assert refusal("context", asked_with_context(unrun(other))) == "no answer is the function that was asked for"
    given = candidate(answer(wordy(other), other, None), check=None)
    assert refusal("direct", given) == "it isn't the function that was asked for"


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        (asked_with_context(unrun(USES), unrun(USES)), "every answer uses what was given"),
        (
            asked_with_context(unrun("def total(:"), unrun(NONE, cut=True)),
            "no answer is the function that was asked for",
        ),
        (asked_with_context(unrun(NONE), reference=HALF), "the source's answer uses less than what was given"),
        (candidate(right()), "the request gives nothing to use"),
    ],
)
def test_context_drops_pairs_that_dont_differ_in_it(given: Candidate, reason: str) -> None:
    assert refusal("context", given) == reason


def test_names_are_used_where_they_are_read_called_or_reached_and_not_where_they_are_only_imported() -> None:
    code = "from lib import load, save\nimport a.b as c\nx.LIMIT\ny = Size()\nload = 1\nsave(c)"
    assert used_names(code, ("load", "save", "LIMIT", "Size", "b", "y", "missing")) == {"LIMIT", "Size", "save"}
    assert used_names("def f(size):\n    return size", ("size",)) == frozenset(), "a parameter of its own"
    assert used_names("no python!", ("python",)) is None and used_names(" ", ("x",)) is None


# reasoning


def test_reasoning_of_a_hard_problem_is_a_thought_that_hits_over_a_direct_miss() -> None:
    short = thinking(GOOD, "Okay, a sum.")
    given = candidate(wrong(wordy(BAD)), wrong(), right(thinking(GOOD)), right(short))
    assert sides("reasoning", given) == (short, block(BAD))
    assert pair_of("reasoning", given, 0.5).check == msgspec.structs.replace(CHECK, hard=True, pass_rate=0.0, samples=2)


def test_reasoning_of_an_easy_problem_is_a_direct_hit_over_a_long_thought_that_hits() -> None:
    longer = thinking(OTHER, THOUGHT * 2)
    given = candidate(right(wordy(GOOD)), right(thinking(GOOD)), right(longer, OTHER), wrong(thinking(BAD)))
    assert sides("reasoning", given) == (block(GOOD), longer)


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        (candidate(right(), right(thinking(GOOD, "A sum."))), "easy, and no answer thinks at length"),
        (candidate(right(), wrong(thinking(BAD))), "easy, and no answer thinks at length"),
        (candidate(wrong(), wrong(thinking(BAD))), "hard, and no thought solves it"),
        (candidate(wrong(reason="timeout"), right(thinking(GOOD))), "hard, and no direct answer is wrong"),
        (candidate(right(thinking(GOOD)), right(thinking(GOOD))), "no direct answer could be run"),
        (candidate(answer(wordy(GOOD), GOOD, None)), "no direct answer could be run"),
    ],
)
def test_reasoning_drops_what_doesnt_show_that_thought_helps_or_is_wasted(given: Candidate, reason: str) -> None:
    assert refusal("reasoning", given) == reason


# single answers


def test_an_easy_problem_gets_the_shortest_code_that_passes_and_no_words() -> None:
    pair = answer_of(candidate(right(wordy(OTHER), OTHER), right(wordy(GOOD)), right(thinking(GOOD)), wrong()), 0.5)
    assert pair.completion == block(GOOD)
    assert (pair.name, pair.source) == ("m.add", "candidates: stdlib")
    assert pair.check == msgspec.structs.replace(CHECK, hard=False, pass_rate=2 / 3, samples=3)


def test_a_hard_problem_gets_the_shortest_thought_that_passes() -> None:
    short = thinking(GOOD, "Okay, a sum.")
    pair = answer_of(candidate(wrong(), wrong(), right(), right(thinking(GOOD)), right(short)), 0.5)
    assert pair.completion == short
    assert pair.check == msgspec.structs.replace(CHECK, hard=True, pass_rate=1 / 3, samples=3)
    without = answer_of(candidate(wrong(), wrong(), right()), 0.5)
    assert (without.completion, without.check and without.check.hard) == (block(GOOD), True)


def test_a_model_that_always_thinks_keeps_its_thought_unmeasured() -> None:
    pair = answer_of(candidate(right(thinking(GOOD))), 0.5)
    assert (pair.completion, pair.check) == (thinking(GOOD), CHECK)


def test_a_problem_that_no_answer_solves_gets_the_sources_or_none() -> None:
    pair = answer_of(candidate(wrong(), wrong(thinking(BAD))), 0.5)
    assert (pair.completion, pair.check and pair.check.hard) == (block(OTHER), True)
    for given, reason in (
        (candidate(wrong(), completion=" "), "no answer passes, and the source has none"),
        (candidate(answer(block(GOOD), GOOD, None)), "no answer could be run"),
    ):
        with pytest.raises(NoPair, match=reason):
            answer_of(given, 0.5)


@pytest.mark.parametrize(("hard_below", "hard"), [(0.5, False), (0.51, True)])
def test_where_hard_begins_is_a_setting(hard_below: float, hard: bool) -> None:
    pair = answer_of(candidate(right(), wrong(), right(thinking(GOOD))), hard_below)
    assert (pair.check and pair.check.hard, pair.completion) == (hard, thinking(GOOD) if hard else block(GOOD))


def test_code_is_the_same_but_for_layout_comments_and_docstrings() -> None:
    assert same_code(GOOD, 'def add(a, b):  # sums\n    """Sum."""\n\n    return (a + b)\n')
    assert not same_code(GOOD, BAD)
    assert same_code("let x = 1; // one", "let  x = 1;") and not same_code("let x = 1", "let x = 2")
