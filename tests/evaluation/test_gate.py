from __future__ import annotations

import pytest

from amigo_local.domain.errors import InputError
from amigo_local.evaluation.directness import Opening
from amigo_local.evaluation.gate import check_gate, parse_gate
from amigo_local.evaluation.results import EvaluationResult, Judged, SuiteResult


def answer(passed: bool | None = None, tokens: int | None = 0) -> Judged:
    return Judged(
        text="",
        opening=Opening(tokens is not None, tokens == 0, tokens),
        answer_tokens=10,
        prompt_tokens=5,
        load_seconds=0.0,
        prompt_seconds=0.1,
        answer_seconds=0.5,
        stop_reason="stop",
        passed=passed,
    )


def suite(name: str, answers: list[Judged], prefix: str) -> SuiteResult:
    ids = tuple(f"{prefix}{number}" for number in range(len(answers)))
    return SuiteResult(name, ids, tuple(f"Write the function\n that does {i}." for i in ids), (tuple(answers),))


def measured(passes: list[bool], tokens: list[int | None]) -> EvaluationResult:
    suites = (
        suite("directness", [answer(tokens=count) for count in tokens], "d"),
        suite("humaneval", [answer(passed) for passed in passes], "HumanEval/"),
    )
    return EvaluationResult("here", "none", ("m",), ("m",), suites)


BEFORE = measured([True] * 8 + [False] * 12, [0, 0, 10, 20])
AFTER = measured([True] * 4 + [False] * 16, [0, 0, 0, 40])


@pytest.mark.parametrize(
    ("text", "amount"),
    [("+5pt", 0.05), ("-2pt", -0.02), ("-2pt max", -0.02), (" + 2.5 pt ", 0.025), ("−3pt", -0.03), ("+0pt", 0.0)],
)
def test_amounts_are_points_of_a_hundred(text: str, amount: float) -> None:
    (rule,) = parse_gate({"humaneval": text})
    assert (rule.metric, rule.amount, rule.text) == ("humaneval", pytest.approx(amount), text.strip())


def test_tokens_have_their_own_unit() -> None:
    (rule,) = parse_gate({"tokens_before_code": "+3tok"})
    assert rule.amount == 3.0 and rule.allows(3.0) and rule.allows(-9.0) and not rule.allows(3.1)
    (rule,) = parse_gate({"tokens_before_code": "-10tok"})
    assert rule.allows(-10.0) and not rule.allows(-9.0)


@pytest.mark.parametrize(
    ("gate", "message", "hint"),
    [
        ({"humanevel": "+1pt"}, "there is no metric humanevel", "did you mean humaneval?"),
        ({"speed": "+1pt"}, "there is no metric speed", "metrics are directness, only_code, tokens_before_code"),
        ({"context": "5pt"}, "'5pt' is no amount with a sign", "`context: +3pt` or `context: -3pt`"),
        ({"context": "+5"}, "'+5' is no amount", "`context: +3pt`"),
        ({"context": "-10%"}, "'-10%' is no amount", "`context: +3pt`"),
        ({"context": "+3tok"}, "context is measured in points of a hundred", "+3pt"),
        ({"tokens_before_code": "+3pt"}, "tokens_before_code is measured in tokens", "+3tok"),
        ({"tokens_before_code": "much"}, "'much' is no amount", "`tokens_before_code: +3tok`"),
    ],
)
def test_what_cannot_be_a_rule_is_refused_with_an_example(gate: dict[str, str], message: str, hint: str) -> None:
    with pytest.raises(InputError) as error:
        parse_gate(gate)
    assert message in error.value.message and hint in error.value.hint
    assert next(iter(gate)) in error.value.message


def test_a_gate_that_is_met_has_no_breach_up_to_the_last_point() -> None:
    assert check_gate(parse_gate({"humaneval": "-20pt", "directness": "+25pt"}), BEFORE, AFTER) == []
    assert check_gate(parse_gate({"humaneval": "+0pt"}), BEFORE, BEFORE) == []
    assert check_gate((), BEFORE, AFTER) == []
    assert len(check_gate(parse_gate({"humaneval": "-19.9pt"}), BEFORE, AFTER)) == 1


def test_a_breach_comes_with_the_evidence() -> None:
    (breach,) = check_gate(parse_gate({"directness": "+0pt", "humaneval": "-10pt"}), BEFORE, AFTER)
    assert breach.rule.metric == "humaneval"
    assert breach.sentence == (
        "humaneval: passes 4 of 20 (8–42 %), before passes 8 of 20 (22–61 %): -20 pt where the gate asks for -10 pt at"
        " least (better on 0, worse on 4, p = 0.12); passed before and fail now: HumanEval/4, HumanEval/5, HumanEval/6"
    )


def test_too_little_gained_is_a_breach_without_a_lost_prompt() -> None:
    (breach,) = check_gate(parse_gate({"directness": "+30pt"}), BEFORE, AFTER)
    assert "+25 pt where the gate asks for +30 pt at least (better on 1, worse on 0" in breach.sentence
    assert "before and fail now" not in breach.sentence


def test_more_tokens_than_allowed_are_a_breach_that_shows_the_request() -> None:
    (breach,) = check_gate(parse_gate({"tokens_before_code": "+2tok"}), BEFORE, AFTER)
    assert "+2.5 tokens where the gate asks for +2.0 tokens at most" in breach.sentence
    assert breach.sentence.endswith("better before: d3 (Write the function that does d3.)")


def test_what_was_not_measured_never_passes() -> None:
    only_plain = EvaluationResult("here", "none", ("m",), ("m",), BEFORE.suites[:1])
    rules = parse_gate({"humaneval": "-100pt", "context": "-100pt"})
    sentences = [breach.sentence for breach in check_gate(rules, BEFORE, only_plain)]
    assert sentences == [
        "humaneval was not measured after, and the gate asks for -100 pt at least",
        "context was not measured before and after, and the gate asks for -100 pt at least",
    ]
