"""What an evaluation found: answers, verdicts, figures and tables; everything a report is made from."""

from __future__ import annotations

import os
import statistics
from collections.abc import Sequence

import msgspec

from amigo_local.domain.artifact import Figure
from amigo_local.domain.events import Column, Table
from amigo_local.evaluation.directness import Directness, Opening, directness_of
from amigo_local.evaluation.skill_tables import percent_range, skill_figures, skill_table
from amigo_local.evaluation.skills import ContextUse, Fixes, Selectivity, context_use, fixes, selectivity
from amigo_local.evaluation.statistics import Interval, PairedTest, mcnemar, sign_test, wilson

ADAPTED = " + adapter"
"""Ends the name of a model that is asked with an adapter over it."""


class Judged(msgspec.Struct, frozen=True):
    """One answer with what was found about it."""

    text: str
    opening: Opening
    answer_tokens: int
    prompt_tokens: int
    load_seconds: float
    prompt_seconds: float
    answer_seconds: float
    stop_reason: str
    passed: bool | None = None
    """Verdict of the sandbox; None where nothing was run."""
    verdict: str = ""
    names_share: float | None = None
    """Share of the supplied names that the answer uses; None where the request supplies none."""
    unchanged: bool | None = None
    """Whether a bug was given back as it was; None where none was to mend."""
    chain: bool | None = None
    """Whether it thinks at length first; None where that isn't asked."""


class SuiteResult(msgspec.Struct, frozen=True):
    """One suite: the same prompts to every model."""

    name: str
    prompt_ids: tuple[str, ...]
    prompts: tuple[str, ...]
    answers: tuple[tuple[Judged, ...], ...]
    """(models, prompts)"""
    hard: tuple[bool | None, ...] = ()
    """(prompts,) whether the problem needs thought, in the reasoning suite."""

    @property
    def is_plain(self) -> bool:
        """Whether it asks for code and nothing else: then how directly that comes is of interest."""
        return self.name in ("directness", "humaneval")

    def directness(self, side: int) -> Directness:
        return directness_of([judged.opening for judged in self.answers[side]])

    def passed(self, side: int) -> Interval | None:
        """Pass@1, one greedy answer for each problem; None where nothing was run."""
        verdicts = self.verdicts(side)
        return wilson(sum(verdicts), len(verdicts)) if verdicts else None

    def verdicts(self, side: int) -> list[bool]:
        """Of the prompts whose answers were run, in order: the same prompts on every side."""
        return [judged.passed for judged in self.answers[side] if judged.passed is not None]

    def context_use(self, side: int) -> ContextUse | None:
        shares = [judged.names_share for judged in self.answers[side] if judged.names_share is not None]
        return context_use(shares) if shares else None

    def fixes(self, side: int) -> Fixes | None:
        bugs = [judged for judged in self.answers[side] if judged.unchanged is not None]
        return fixes([bool(bug.passed) for bug in bugs], [bool(bug.unchanged) for bug in bugs]) if bugs else None

    def selectivity(self, side: int) -> Selectivity | None:
        if self.name != "reasoning":
            return None
        answers = self.answers[side]
        chains, passed = [bool(answer.chain) for answer in answers], [answer.passed for answer in answers]
        return selectivity([bool(hard) for hard in self.hard], chains, passed)

    def at_once_test(self) -> PairedTest:
        first, second = ([judged.opening.at_once for judged in side] for side in self.answers[:2])
        return mcnemar(first, second)

    def only_code_test(self) -> PairedTest:
        first, second = ([judged.opening.only_code for judged in side] for side in self.answers[:2])
        return mcnemar(first, second)

    def cut_share(self, side: int) -> float:
        """Share of answers that the token limit ended: of a small model, mostly repetition."""
        answers = self.answers[side]
        return sum(judged.stop_reason == "length" for judged in answers) / len(answers)

    def median_answer_tokens(self, side: int) -> float:
        return float(statistics.median(judged.answer_tokens for judged in self.answers[side]))

    def tokens_test(self) -> PairedTest:
        first, second = ([judged.opening.tokens_before_code for judged in side] for side in self.answers[:2])
        return sign_test(first, second)

    def passed_test(self) -> PairedTest | None:
        if self.passed(0) is None or len(self.answers) < 2:
            return None
        return mcnemar(self.verdicts(0), self.verdicts(1))


class Speed(msgspec.Struct, frozen=True):
    answer_tokens: int
    tokens_per_second: float
    """Decoding alone."""
    load_seconds: float
    """The longest load that an answer reported: the cold one."""


class EvaluationResult(msgspec.Struct, frozen=True):
    """Written as results.json; the report is made from this alone."""

    backend: str
    sandbox: str
    """What kept generated code, or why none was run."""
    models: tuple[str, ...]
    labels: tuple[str, ...]
    """What a report calls the models, e.g. `before` and `after`."""
    suites: tuple[SuiteResult, ...]

    def speed(self, side: int) -> Speed:
        # A request that two suites have in common was asked once.
        once: dict[str, Judged] = {}
        for suite in self.suites:
            once |= dict(zip(suite.prompts, suite.answers[side], strict=True))
        judged = list(once.values())
        seconds = sum(answer.answer_seconds for answer in judged)
        tokens = sum(answer.answer_tokens for answer in judged)
        load = max((answer.load_seconds for answer in judged), default=0.0)
        return Speed(tokens, tokens / seconds if seconds else 0.0, load)

    def figures(self) -> dict[str, Figure]:
        """Flat figures for the artifact: `directness.after.at_once_share` and the like."""
        figures: dict[str, Figure] = {"backend": self.backend, "sandbox": self.sandbox}
        for side, label in enumerate(self.labels):
            speed = self.speed(side)
            figures[f"{label}.tokens_per_second"] = round(speed.tokens_per_second, 2)
            figures[f"{label}.load_seconds"] = round(speed.load_seconds, 3)
            for suite in self.suites:
                key = f"{suite.name}.{label}"
                own = self._plain_figures(suite, side) if suite.is_plain else skill_figures(suite, side)
                own |= {"cut_share": suite.cut_share(side), "median_answer_tokens": suite.median_answer_tokens(side)}
                figures |= {f"{key}.{name}": value for name, value in own.items()}
        if len(self.models) > 1:
            for suite in self.suites:
                if not suite.is_plain:
                    continue
                figures[f"{suite.name}.at_once_p_value"] = suite.at_once_test().p_value
                figures[f"{suite.name}.only_code_p_value"] = suite.only_code_test().p_value
                figures[f"{suite.name}.tokens_before_code_p_value"] = suite.tokens_test().p_value
                if (test := suite.passed_test()) is not None:
                    figures[f"{suite.name}.pass_at_1_p_value"] = test.p_value
        return figures

    def _plain_figures(self, suite: SuiteResult, side: int) -> dict[str, Figure]:
        found = suite.directness(side)
        figures: dict[str, Figure] = {
            "at_once_share": found.at_once.share,
            "only_code_share": found.only_code.share,
            "with_code_share": found.with_code.share,
            "median_tokens_before_code": found.median_tokens_before_code,
            "mean_tokens_before_code": found.mean_tokens_before_code,
        }
        if (passed := suite.passed(side)) is not None:
            figures |= {"pass_at_1": passed.share, "pass_at_1_low": passed.low, "pass_at_1_high": passed.high}
        return figures

    def tables(self) -> tuple[Table, ...]:
        """Directness, correctness where it was measured, the skills, speed."""
        plain = [suite for suite in self.suites if suite.is_plain]
        tables = [self._directness_table(suite) for suite in plain]
        tables += [self._correctness_table(suite) for suite in plain if suite.passed(0) is not None]
        tables += [table for suite in self.suites if (table := skill_table(suite, self.labels))]
        return (*tables, self._speed_table())

    def _directness_table(self, suite: SuiteResult) -> Table:
        rows: list[tuple[Figure, ...]] = []
        for side, label in enumerate(self.labels):
            found = suite.directness(side)
            rows.append(
                (
                    label,
                    found.answers,
                    found.at_once.share,
                    percent_range(found.at_once),
                    found.only_code.share,
                    percent_range(found.only_code),
                    found.with_code.share,
                    found.mean_tokens_before_code,
                    suite.median_answer_tokens(side),
                    suite.cut_share(side),
                )
            )
        columns = (
            Column("model"),
            Column("answers", "count"),
            Column("code at once", "ratio"),
            Column("95 %"),
            Column("only code", "ratio"),
            Column("95 %"),
            Column("any code", "ratio"),
            Column("mean tokens before code", "number"),
            Column("median tokens", "number"),
            Column("cut off", "ratio"),
        )
        asked = "held-out" if suite.name == "directness" else suite.name
        return Table(f"Directness on {asked} prompts", columns, tuple(rows))

    def _correctness_table(self, suite: SuiteResult) -> Table:
        rows: list[tuple[Figure, ...]] = []
        for side, label in enumerate(self.labels):
            passed = suite.passed(side)
            assert passed is not None
            right = [judged for judged in suite.answers[side] if judged.passed]
            before = [judged.opening.tokens_before_code for judged in right]
            known = [tokens for tokens in before if tokens is not None]
            median = float(statistics.median(known)) if known else None
            rows.append((label, len(suite.verdicts(side)), len(right), passed.share, percent_range(passed), median))
        columns = (
            Column("model"),
            Column("problems", "count"),
            Column("passed", "count"),
            Column("pass@1", "ratio"),
            Column("95 % interval"),
            Column("median tokens before code, of those passed", "number"),
        )
        asked = "held-out requests that can be run" if suite.name == "directness" else suite.name
        return Table(f"Correctness on {asked}", columns, tuple(rows))

    def _speed_table(self) -> Table:
        rows: list[tuple[Figure, ...]] = []
        for side, label in enumerate(self.labels):
            speed = self.speed(side)
            name = short_name(self.models[side])
            rows.append((label, name, speed.answer_tokens, speed.tokens_per_second, speed.load_seconds))
        columns = (
            Column("model"),
            Column("name"),
            Column("tokens written", "count"),
            Column("tok/s", "number"),
            Column("load", "seconds"),
        )
        return Table(f"Speed, served by {self.backend}", columns, tuple(rows))


def labels_for(models: Sequence[str]) -> tuple[str, ...]:
    """`before` and `after` for two, the names for any other number."""
    return ("before", "after") if len(models) == 2 else tuple(map(short_name, models))


def short_name(model: str) -> str:
    """A GGUF by its file's name alone; anything else as it is."""
    path = model.removesuffix(ADAPTED)
    if not path.endswith(".gguf"):
        return model
    return os.path.basename(path) + model[len(path) :]  # noqa: PTH119  # a name, maybe of Windows
