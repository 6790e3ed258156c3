"""Progress: one figure for each skill of a model, and what moved from one measurement to the next."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Literal, NamedTuple

import msgspec

from amigo_local.domain.artifact import Figure
from amigo_local.domain.events import Column, Table
from amigo_local.evaluation.intervals import bootstrap_mean, mean_share
from amigo_local.evaluation.results import EvaluationResult, Judged, SuiteResult
from amigo_local.evaluation.statistics import Interval, PairedTest, sign_test

CLEAR = 0.05
"""A p-value below it is no chance any more; of twenty comparisons of equals, one is."""
LEAST_PROMPTS_LOST, LEAST_LOSS = 2, 0.05
"""A skill regressed when so many prompts more were lost than won, and so much of its share: one prompt flips easily."""
LATEST = -1
"""The last model of a result: of a comparison the newer one."""

Unit = Literal["share", "tokens"]
Direction = Literal["better", "worse", "unclear"]


class Metric(msgspec.Struct, frozen=True):
    """One skill in one number, with its 95 % interval."""

    name: str
    value: float
    low: float
    high: float
    count: int
    """Answers that it was measured on."""
    unit: Unit


class Change(msgspec.Struct, frozen=True):
    """One metric of two measurements; the test is over the prompts that both answered."""

    before: Metric
    after: Metric
    better: int
    worse: int
    p_value: float

    @property
    def name(self) -> str:
        return self.after.name

    @property
    def difference(self) -> float:
        return self.after.value - self.before.value

    @property
    def direction(self) -> Direction:
        if self.p_value >= CLEAR:
            return "unclear"
        return "better" if self.better > self.worse else "worse"

    @property
    def evidence(self) -> str:
        return f"better on {self.better}, worse on {self.worse}, p = {self.p_value:.2g}"

    @property
    def sentence(self) -> str:
        return f"{self.name}: {told(self.after)}, before {told(self.before, short=True)} ({self.evidence})"


class _Measure(NamedTuple):
    """How a metric is read from a suite. `score` is None where an answer says nothing about it."""

    suite: str
    score: Callable[[Judged, bool | None], float | None]
    """Higher is better, except of tokens."""
    sentence: str
    """With {share}, {hits}, {count} or {value}."""
    unit: Unit = "share"


_MEASURES: Mapping[str, _Measure] = {
    "directness": _Measure("directness", lambda a, _: a.opening.at_once, "begins with code in {hits} of {count}"),
    "only_code": _Measure("directness", lambda a, _: a.opening.only_code, "gives only code in {hits} of {count}"),
    "tokens_before_code": _Measure(
        "directness", lambda a, _: a.opening.tokens_before_code, "takes {value} tokens before its code", "tokens"
    ),
    "humaneval": _Measure("humaneval", lambda a, _: a.passed, "passes {hits} of {count}"),
    "writing": _Measure("directness", lambda a, _: a.passed, "passes {hits} of {count}"),
    "context": _Measure("context", lambda a, _: a.names_share, "uses {share} of the supplied names"),
    "debugging": _Measure("debugging", lambda a, _: _mended(a), "mends {hits} of {count}"),
    "reasoning": _Measure("reasoning", lambda a, hard: a.chain == hard, "selectivity {points}"),
}
METRICS = tuple(_MEASURES)
"""Names of all metrics; `gate` in a recipe may name each."""


def _mended(answer: Judged) -> bool | None:
    return None if answer.unchanged is None else bool(answer.passed)


def unit_of(name: str) -> Unit:
    return _MEASURES[name].unit


def suite_of(name: str) -> str:
    """Which suite must be run for a metric."""
    return _MEASURES[name].suite


def metrics(result: EvaluationResult, side: int = LATEST) -> dict[str, Metric]:
    """By name, in a fixed order; what wasn't measured is left out.

    directness, only_code: shares of the held-out requests that get code at once, and nothing else. tokens_before_code:
    mean over answers with code; lower is better. humaneval, writing (held-out requests that can be run), debugging:
    pass@1. context: mean share of the supplied names that are used. reasoning: selectivity, in [-1, 1].
    """
    found: dict[str, Metric] = {}
    for name, measure in _MEASURES.items():
        suite = _suite(result, measure.suite)
        known = [score for score in _scores(suite, measure, side).values() if score is not None] if suite else []
        if not suite or not known:
            continue
        interval = _interval(name, suite, side, known)
        if interval:
            found[name] = Metric(name, interval.share, interval.low, interval.high, len(known), measure.unit)
    return found


def _interval(name: str, suite: SuiteResult, side: int, known: Sequence[float]) -> Interval | None:
    if name == "reasoning":
        selectivity = suite.selectivity(side)
        return selectivity.selectivity if selectivity else None
    return bootstrap_mean(known) if _MEASURES[name].unit == "tokens" else mean_share(known)


def _suite(result: EvaluationResult, name: str) -> SuiteResult | None:
    return next((suite for suite in result.suites if suite.name == name), None)


def _scores(suite: SuiteResult, measure: _Measure, side: int) -> dict[str, float | None]:
    """Prompt id -> score."""
    hard = suite.hard or (None,) * len(suite.prompt_ids)
    answers = zip(suite.prompt_ids, suite.answers[side], hard, strict=True)
    return {prompt: measure.score(answer, is_hard) for prompt, answer, is_hard in answers}


def paired_scores(
    name: str, before: EvaluationResult, after: EvaluationResult, sides: tuple[int, int] = (LATEST, LATEST)
) -> dict[str, tuple[float | None, float | None]]:
    """Prompt id -> scores of both, for the prompts that both were asked and that the metric judges."""
    measure = _MEASURES[name]
    first, second = _suite(before, measure.suite), _suite(after, measure.suite)
    if not first or not second:
        return {}
    one, two = _scores(first, measure, sides[0]), _scores(second, measure, sides[1])
    pairs = {prompt: (score, two[prompt]) for prompt, score in one.items() if prompt in two}
    if measure.unit == "tokens":  # None: no code ever came, which is worse than any number
        return pairs
    return {prompt: pair for prompt, pair in pairs.items() if None not in pair}


def compare(
    before: EvaluationResult, after: EvaluationResult, sides: tuple[int, int] = (LATEST, LATEST)
) -> tuple[Change, ...]:
    """Every metric that both measured, the last models of the two results unless `sides` says others.

    The test is a sign test over prompts, which is McNemar's where a score is yes or no.
    """
    first, second = metrics(before, sides[0]), metrics(after, sides[1])
    changes = []
    for name in first.keys() & second.keys():
        test = _test(name, list(paired_scores(name, before, after, sides).values()))
        changes.append(Change(first[name], second[name], test.better, test.worse, test.p_value))
    return tuple(sorted(changes, key=lambda change: METRICS.index(change.name)))


def _test(name: str, pairs: Sequence[tuple[float | None, float | None]]) -> PairedTest:
    if unit_of(name) == "tokens":
        return sign_test([a for a, _ in pairs], [b for _, b in pairs])
    return sign_test([-a for a, _ in pairs if a is not None], [-b for _, b in pairs if b is not None])


def told(metric: Metric, *, short: bool = False) -> str:
    """`passes 6 of 20 (15–52 %)`; short: `6 of 20`."""
    low, high = metric.low, metric.high
    values = {
        "hits": str(round(metric.value * metric.count)),
        "count": str(metric.count),
        "share": f"{metric.value:.0%}",
        "points": f"{metric.value * 100:+.0f} pt",
        "value": f"{metric.value:.1f}",
    }
    sentence = _MEASURES[metric.name].sentence
    if short:
        sentence = sentence[sentence.index("{") :].partition(" of the")[0].removesuffix(" tokens before its code")
        return sentence.format(**values)
    if metric.unit == "tokens":
        return f"{sentence.format(**values)} ({low:.1f}–{high:.1f})"
    if metric.name == "reasoning":
        return f"{sentence.format(**values)} ({low * 100:+.0f} to {high * 100:+.0f})"
    return f"{sentence.format(**values)} ({low * 100:.0f}–{high * 100:.0f} %)"


def progress_table(history: Sequence[tuple[str, EvaluationResult]]) -> Table:
    """One row for each stage, the base first; `moved` names what clearly changed against the row before."""
    measured = [metrics(result) for _, result in history]
    names = [name for name in METRICS if any(name in found for found in measured)]
    rows: list[tuple[Figure, ...]] = []
    for place, (stage, result) in enumerate(history):
        values = tuple(found.value if (found := measured[place].get(name)) else None for name in names)
        changes = compare(history[place - 1][1], result) if place else ()
        moved = [f"{change.name} {_arrow(change)}" for change in changes if change.direction != "unclear"]
        rows.append((stage, *values, ", ".join(moved) or "–"))
    formats = tuple(Column(name, "number" if unit_of(name) == "tokens" else "ratio") for name in names)
    return Table("Metrics after each stage", (Column("stage"), *formats, Column("clearly moved")), tuple(rows))


def _arrow(change: Change) -> str:
    return "better" if change.direction == "better" else "WORSE"


def regressions(history: Sequence[tuple[str, EvaluationResult]]) -> list[str]:
    """A sentence for each skill that the newest measurement shows worse than the best earlier one, with its counts.

    Also for losses that may be chance, with how likely that is; not for a prompt or two, which come and go.
    """
    if len(history) < 2:
        return []
    newest_name, newest = history[-1]
    earlier = [(metrics(result), stage, result) for stage, result in history[:-1]]
    sentences = []
    for name, metric in metrics(newest).items():
        sign = -1 if metric.unit == "tokens" else 1
        known = [(sign * found[name].value, stage, result) for found, stage, result in earlier if name in found]
        if not known:
            continue
        _, stage, result = max(known, key=lambda best: best[0])
        change = next(change for change in compare(result, newest) if change.name == name)
        if _is_loss(change):
            chance = "" if change.p_value < CLEAR else ", may be chance"
            sentences.append(
                f"{name} regressed: {newest_name} {told(metric)}, {stage} {told(change.before, short=True)}"
                f" ({change.evidence}{chance})"
            )
    return sentences


def _is_loss(change: Change) -> bool:
    if change.worse - change.better < LEAST_PROMPTS_LOST:
        return False
    return change.difference > 0 if change.after.unit == "tokens" else change.difference <= -LEAST_LOSS
