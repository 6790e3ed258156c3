"""Hard and easy are told by measurement or by two kinds of sign, and never by length alone."""

from __future__ import annotations

import msgspec
import pytest

from amigo_local.data.difficulty import Judgement, apply_reasoning, is_hard_by, signs_of
from amigo_local.data.pair import Pair
from amigo_local.data.preferences import Preference
from amigo_local.domain.answer_check import AnswerCheck
from amigo_local.domain.recipe import DataSettings, DifficultySettings

CODE = "```python\ndef add(a, b):\n    return a + b\n```"
NESTED = "```python\ndef f(rows):\n    for row in rows:\n        for cell in row:\n            print(cell)\n```"
RECURSIVE = "```python\nclass Tree:\n    def depth(self):\n        return 1 + self.depth()\n```"
EASY, HARD = "Add two numbers.", "Find the shortest path in a weighted graph in O(E log V) time."
CHAIN = "Okay, a sum. Wait, of two. Hmm, yes, two."
LONG = "one more word of it " * 200
HARD_SETTINGS = DataSettings(reasoning="hard")


def thinking(prompt: str, chain: str = CHAIN, answer: str = CODE, **more: object) -> Pair:
    return Pair(prompt=prompt, completion=f"<think>\n{chain}\n</think>\n\n{answer}", source="s", name="n", **more)


@pytest.mark.parametrize(
    ("prompt", "chain", "answer", "expected"),
    [
        (EASY, "", CODE, ()),
        ("Given n with 1 <= n <= 10^5, return it.", "", CODE, ("constraints: 2 bounds",)),
        (
            "It must be sorted in place, at most once, unless the list is empty.",
            "",
            CODE,
            ("constraints: 4 conditions",),
        ),
        ("Return the minimum number of coins.", "", CODE, ("optimality: minimum number of",)),
        ("Do it in O(n log n).", "", CODE, ("optimality: o(n log n)",)),
        ("Use dynamic\nprogramming.", "", CODE, ("algorithm: dynamic programming",)),
        ("Draw a bar graph.", "", CODE, ()),
        (EASY, "", NESTED, ("answer: nested loops",)),
        (EASY, "", RECURSIVE, ("answer: recursion",)),
        (EASY, "", "```js\nfunction a() {}\nfunction b() {}\nfunction c() {}\n```", ("answer: 3 functions",)),
        (EASY, CHAIN, CODE, ("chain: changes its mind 2 times",)),
        (EASY, LONG, CODE, ("length: 1000 words of thought for 9 of answer",)),
        (EASY, "word " * 149, CODE, ()),
        (EASY, "word " * 160, "word " * 41, ()),
    ],
)
def test_each_sign_is_found_and_named(prompt: str, chain: str, answer: str, expected: tuple[str, ...]) -> None:
    assert signs_of(prompt, chain, answer) == expected


def test_two_kinds_are_needed_and_length_never_does_it_alone() -> None:
    two = DifficultySettings()
    assert is_hard_by(("optimality: a", "algorithm: b"), two)
    assert not is_hard_by(("answer: nested loops", "answer: recursion"), two)
    assert is_hard_by(("length: a", "chain: b"), two)
    one = DifficultySettings(signs=1)
    assert is_hard_by(("chain: b",), one)
    assert not is_hard_by(("length: a",), one)


def test_without_a_measurement_signs_decide_who_keeps_the_chain() -> None:
    easy, why = apply_reasoning(thinking(EASY, LONG), HARD_SETTINGS)
    assert easy.completion == CODE
    assert easy.check == AnswerCheck(skill="reasoning", hard=False)
    assert why is not None and (why.hard, why.measured, why.words) == (False, False, 1000)
    hard, why = apply_reasoning(thinking(HARD), HARD_SETTINGS)
    assert hard.completion == thinking(HARD).completion
    assert hard.check == AnswerCheck(skill="reasoning", hard=True)
    assert why == Judgement(
        source="s",
        name="n",
        prompt_key=why.prompt_key if why else "",
        hard=True,
        measured=False,
        signs=(
            "optimality: o(e log v)",
            "algorithm: shortest path",
            "chain: changes its mind 2 times",
        ),
        words=9,
    )
    assert msgspec.json.decode(msgspec.json.encode(why), type=Judgement) == why


@pytest.mark.parametrize(("pass_rate", "hard"), [(0.0, True), (0.49, True), (0.5, False), (1.0, False)])
def test_a_measurement_overrules_every_sign(pass_rate: float, hard: bool) -> None:
    for prompt in (EASY, HARD):
        pair, why = apply_reasoning(thinking(prompt), HARD_SETTINGS, pass_rate, 4)
        assert pair.completion.startswith("<think>") is hard
        assert why is not None and (why.hard, why.measured, why.pass_rate, why.samples) == (hard, True, pass_rate, 4)


def test_what_was_measured_before_is_not_judged_again() -> None:
    check = AnswerCheck(skill="writing", entry_point="f", program="f()", hard=False)
    pair, why = apply_reasoning(thinking(HARD, check=check), HARD_SETTINGS)
    assert (pair.completion, pair.check) == (CODE, check)
    assert why is not None and why.measured
    direct = Pair(prompt=EASY, completion=CODE, source="s", check=msgspec.structs.replace(check, hard=True))
    same, why = apply_reasoning(direct, HARD_SETTINGS)
    assert same == direct and why is not None and why.hard


def test_strip_takes_every_chain_and_keep_none() -> None:
    assert apply_reasoning(thinking(HARD), DataSettings(reasoning="strip"))[0].completion == CODE
    for reasoning in ("keep", "strip", "hard"):
        direct = Pair(prompt=HARD, completion=CODE, source="s")
        assert apply_reasoning(direct, DataSettings(reasoning=reasoning)) == (direct, None)
    assert apply_reasoning(thinking(EASY), DataSettings(reasoning="keep")) == (thinking(EASY), None)
    unfinished = Pair(prompt=EASY, completion="<think>\nWell, then", source="s")
    assert apply_reasoning(unfinished, HARD_SETTINGS)[0].completion == ""


def test_pairs_of_answers_stay_as_they_are() -> None:
    pair = Preference(prompt=EASY, completion=thinking(EASY).completion, rejected=CODE, source="s")
    for reasoning in ("strip", "hard"):
        assert apply_reasoning(pair, DataSettings(reasoning=reasoning)) == (pair, None)


def test_a_judgement_names_the_pass_rate_that_candidates_measured() -> None:
    check = AnswerCheck(skill="writing", hard=True, pass_rate=0.25, samples=4)
    pair = Pair(prompt="p", completion="```python\nx = 1\n```", source="candidates: doctest", check=check)
    _, judgement = apply_reasoning(pair, DataSettings(reasoning="hard"))
    assert judgement is not None
    assert (judgement.hard, judgement.measured, judgement.pass_rate, judgement.samples) == (True, True, 0.25, 4)
