from __future__ import annotations

from collections.abc import Sequence

import pytest

from amigo_local.evaluation.directness import Opening
from amigo_local.evaluation.progress import METRICS, compare, metrics, progress_table, regressions, told
from amigo_local.evaluation.results import EvaluationResult, Judged, SuiteResult
from amigo_local.evaluation.statistics import wilson


def judged(
    *,
    tokens: int | None = 0,
    only_code: bool = False,
    passed: bool | None = None,
    names: float | None = None,
    unchanged: bool | None = None,
    chain: bool | None = None,
) -> Judged:
    return Judged(
        text="",
        opening=Opening(tokens is not None, tokens == 0, tokens, only_code),
        answer_tokens=10,
        prompt_tokens=5,
        load_seconds=0.0,
        prompt_seconds=0.1,
        answer_seconds=0.5,
        stop_reason="stop",
        passed=passed,
        names_share=names,
        unchanged=unchanged,
        chain=chain,
    )


def suite(name: str, *sides: Sequence[Judged], hard: Sequence[bool] = ()) -> SuiteResult:
    ids = tuple(f"{name}/{number}" for number in range(len(sides[0])))
    texts = tuple(f"Request {prompt}" for prompt in ids)
    return SuiteResult(name, ids, texts, tuple(map(tuple, sides)), tuple(hard) or (None,) * len(ids))


def result(*suites: SuiteResult) -> EvaluationResult:
    models = tuple(f"m{side}" for side in range(len(suites[0].answers)))
    return EvaluationResult("here", "none", models, models, suites)


def passing(count: int, total: int = 20, name: str = "humaneval") -> EvaluationResult:
    return result(suite(name, [judged(passed=number < count, unchanged=False) for number in range(total)]))


def direct(*tokens: int | None) -> EvaluationResult:
    return result(suite("directness", [judged(tokens=count) for count in tokens]))


def test_every_metric_is_measured_from_its_own_suite() -> None:
    found = metrics(
        result(
            suite(
                "directness",
                [
                    judged(tokens=0, only_code=True, passed=True),
                    judged(tokens=0, passed=False),
                    judged(tokens=6),
                    judged(tokens=None),
                ],
            ),
            suite("humaneval", [judged(passed=True)] * 3 + [judged(passed=False)]),
            suite("context", [judged(names=1.0), judged(names=0.5)]),
            suite("debugging", [judged(passed=True, unchanged=False), judged(passed=False, unchanged=True)] * 2),
            suite(
                "reasoning",
                [judged(chain=chain) for chain in (True, False, True, False)],
                hard=[True, True, False, False],
            ),
        )
    )
    assert tuple(found) == METRICS
    assert {name: (metric.value, metric.count) for name, metric in found.items()} == {
        "directness": (0.5, 4),
        "only_code": (0.25, 4),
        "tokens_before_code": (2.0, 3),
        "humaneval": (0.75, 4),
        "writing": (0.5, 2),
        "context": (0.75, 2),
        "debugging": (0.5, 4),
        "reasoning": (0.0, 4),
    }
    assert (found["humaneval"].low, found["humaneval"].high) == (wilson(3, 4).low, wilson(3, 4).high)
    assert {metric.unit for name, metric in found.items() if name != "tokens_before_code"} == {"share"}
    assert all(metric.low <= metric.value <= metric.high for metric in found.values())


def test_what_was_not_measured_has_no_metric() -> None:
    assert list(metrics(passing(3))) == ["humaneval"]
    only_hard = result(suite("reasoning", [judged(chain=True)], hard=[True]))
    assert metrics(only_hard) == {}
    assert metrics(direct(None, None)).keys() == {"directness", "only_code"}


def test_the_last_model_counts_unless_another_is_named() -> None:
    both = result(suite("humaneval", [judged(passed=False)] * 4, [judged(passed=True)] * 4))
    assert (metrics(both)["humaneval"].value, metrics(both, 0)["humaneval"].value) == (1.0, 0.0)
    (change,) = compare(both, both, (0, 1))
    assert (change.better, change.worse, change.p_value) == (4, 0, 0.125)


def test_a_change_is_clear_from_six_prompts_of_one_mind() -> None:
    """A fair coin falls six times the same way in 2 of 64 cases, five times in 2 of 32."""
    for gained, p_value, direction in [(5, 2 / 32, "unclear"), (6, 2 / 64, "better")]:
        (change,) = compare(passing(3), passing(3 + gained))
        assert (change.better, change.worse, change.p_value, change.direction) == (gained, 0, p_value, direction)
    (change,) = compare(passing(16), passing(10))
    assert change.direction == "worse" and change.difference == pytest.approx(-0.3)
    assert change.sentence == (
        "humaneval: passes 10 of 20 (30–70 %), before 16 of 20 (better on 0, worse on 6, p = 0.031)"
    )


def test_pairs_are_made_by_prompt_and_not_by_place() -> None:
    before = passing(6)
    turned = result(
        SuiteResult(
            "humaneval",
            before.suites[0].prompt_ids[::-1],
            before.suites[0].prompts[::-1],
            (before.suites[0].answers[0][::-1],),
        )
    )
    (change,) = compare(before, turned)
    assert (change.better, change.worse, change.p_value) == (0, 0, 1.0)
    other = passing(6, name="debugging")
    assert compare(before, other) == ()


def test_of_tokens_fewer_are_better_and_no_code_is_worst() -> None:
    by_name = {
        change.name: change for change in compare(direct(9, 4, None, 5, 7, None), direct(3, 8, 3, 5, None, None))
    }
    change = by_name["tokens_before_code"]
    assert (change.better, change.worse) == (2, 2)
    assert (change.before.value, change.after.value) == (6.25, 4.75)
    assert told(change.after).startswith("takes 4.8 tokens before its code (3.0–")
    assert told(change.after, short=True) == "4.8"


def test_context_is_paired_by_each_answers_share() -> None:
    before, after = (
        result(suite("context", [judged(names=share) for share in shares]))
        for shares in ((0.0, 0.5, 1.0, 0.25), (0.5, 0.75, 1.0, 0.0))
    )
    (change,) = compare(before, after)
    assert (change.better, change.worse, change.p_value) == (2, 1, 1.0)
    assert (
        told(change.after).startswith("uses 56% of the supplied names (") and told(change.before, short=True) == "44%"
    )


def test_reasoning_is_paired_by_whether_thought_came_where_it_was_needed() -> None:
    hard = [True] * 8 + [False] * 8
    always = result(suite("reasoning", [judged(chain=True)] * 16, hard=hard))
    selective = result(suite("reasoning", [judged(chain=is_hard) for is_hard in hard], hard=hard))
    (change,) = compare(always, selective)
    assert (change.better, change.worse, change.p_value) == (8, 0, 2 / 256)
    assert (change.before.value, change.after.value, change.direction) == (0.0, 1.0, "better")
    assert told(change.after).startswith("selectivity +100 pt (+") and told(change.before, short=True) == "+0 pt"


def test_the_table_has_a_row_for_each_stage_and_says_what_clearly_moved() -> None:
    first, second = passing(3), passing(12)
    third = result(*second.suites, suite("context", [judged(names=1.0)]))
    table = progress_table([("base", first), ("stage1", second), ("stage2", third)])
    assert [column.name for column in table.columns] == ["stage", "humaneval", "context", "clearly moved"]
    assert [column.format for column in table.columns] == ["text", "ratio", "ratio", "text"]
    assert table.rows == (
        ("base", 0.15, None, "–"),
        ("stage1", 0.6, None, "humaneval better"),
        ("stage2", 0.6, 1.0, "–"),
    )
    worse = progress_table([("base", second), ("stage1", first)])
    assert worse.rows[1][-1] == "humaneval WORSE"
    tokens = progress_table([("base", direct(3, 0))])
    assert tokens.columns[3].format == "number" and tokens.rows[0][3] == 1.5


def test_a_regression_is_told_against_the_best_earlier_stage_with_its_counts() -> None:
    history = [("base", passing(4)), ("stage1", passing(6)), ("stage2", passing(5)), ("stage3", passing(3))]
    assert regressions(history) == [
        "humaneval regressed: stage3 passes 3 of 20 (5–36 %), stage1 6 of 20"
        " (better on 0, worse on 3, p = 0.25, may be chance)"
    ]
    assert regressions(history[:3]) == [], "one prompt comes and goes"
    assert regressions(history[:1]) == regressions([]) == []
    clear = regressions([("base", passing(12)), ("stage1", passing(2))])
    assert clear[0].endswith("p = 0.002)")


def test_more_tokens_before_code_are_a_regression_too() -> None:
    (sentence,) = regressions([("base", direct(5, 5, 5, 5)), ("stage1", direct(9, 9, 5, 5))])
    assert sentence.startswith("tokens_before_code regressed: stage1 takes 7.0 tokens before its code")
    assert regressions([("base", direct(9, 9, 5, 5)), ("stage1", direct(5, 5, 5, 5))]) == []
