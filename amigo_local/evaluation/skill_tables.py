"""Figures and tables of the suites context, debugging and reasoning."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from amigo_local.domain.artifact import Figure
from amigo_local.domain.events import Column, Table
from amigo_local.evaluation.statistics import Interval

if TYPE_CHECKING:
    from amigo_local.evaluation.results import SuiteResult


def percent_range(interval: Interval | None) -> str:
    """`12–34 %`; a dash where nothing was measured."""
    return "–" if interval is None else f"{interval.low * 100:.0f}–{interval.high * 100:.0f} %"


def skill_figures(suite: SuiteResult, side: int) -> dict[str, Figure]:
    """Flat, by name, without suite and side."""
    if context := suite.context_use(side):
        return {
            "names_used_share": context.used.share,
            "names_used_low": context.used.low,
            "names_used_high": context.used.high,
            "any_name_share": context.any_used.share,
            "all_names_share": context.all_used.share,
        }
    if fixes := suite.fixes(side):
        return {
            "fixed_share": fixes.fixed.share,
            "fixed_low": fixes.fixed.low,
            "fixed_high": fixes.fixed.high,
            "unchanged_share": fixes.unchanged.share,
        }
    if found := suite.selectivity(side):
        wanted = found.selectivity
        return {
            "hard_with_chain_share": _share(found.hard_with_chain),
            "easy_direct_share": _share(found.easy_direct),
            "selectivity": _share(wanted),
            "selectivity_low": wanted.low if wanted else None,
            "selectivity_high": wanted.high if wanted else None,
            "hard_pass_at_1": _share(found.hard_passed),
            "easy_pass_at_1": _share(found.easy_passed),
        }
    return {}


def skill_table(suite: SuiteResult, labels: Sequence[str]) -> Table | None:
    """None for a suite of another kind."""
    makers = {"context": _context_table, "debugging": _debugging_table, "reasoning": _reasoning_table}
    return makers[suite.name](suite, labels) if suite.name in makers else None


def _context_table(suite: SuiteResult, labels: Sequence[str]) -> Table:
    rows: list[tuple[Figure, ...]] = []
    for side, label in enumerate(labels):
        if found := suite.context_use(side):
            shares = (found.used.share, percent_range(found.used), found.any_used.share, found.all_used.share)
            rows.append((label, found.answers, *shares, suite.cut_share(side)))
    columns = (
        Column("model"),
        Column("answers", "count"),
        Column("supplied names used", "ratio"),
        Column("95 %"),
        Column("at least one", "ratio"),
        Column("all of them", "ratio"),
        Column("cut off", "ratio"),
    )
    return Table("Context: use of what the request supplies", columns, tuple(rows))


def _debugging_table(suite: SuiteResult, labels: Sequence[str]) -> Table:
    rows: list[tuple[Figure, ...]] = []
    for side, label in enumerate(labels):
        if found := suite.fixes(side):
            mended = round(found.fixed.share * found.answers)
            shares = (found.fixed.share, percent_range(found.fixed), found.unchanged.share)
            rows.append((label, found.answers, mended, *shares, suite.cut_share(side)))
    columns = (
        Column("model"),
        Column("bugs", "count"),
        Column("mended", "count"),
        Column("fix rate", "ratio"),
        Column("95 %"),
        Column("given back unchanged", "ratio"),
        Column("cut off", "ratio"),
    )
    return Table("Debugging: bugs mended", columns, tuple(rows))


def _reasoning_table(suite: SuiteResult, labels: Sequence[str]) -> Table:
    rows: list[tuple[Figure, ...]] = []
    for side, label in enumerate(labels):
        if found := suite.selectivity(side):
            thought = (_share(found.hard_with_chain), _share(found.easy_direct), points(found.selectivity))
            passed = (_share(found.hard_passed), _share(found.easy_passed))
            rows.append((label, found.hard, found.easy, *thought, *passed, suite.cut_share(side)))
    columns = (
        Column("model"),
        Column("hard", "count"),
        Column("easy", "count"),
        Column("hard: thinks first", "ratio"),
        Column("easy: answers directly", "ratio"),
        Column("selectivity, with its 95 %"),
        Column("hard: pass@1", "ratio"),
        Column("easy: pass@1", "ratio"),
        Column("cut off", "ratio"),
    )
    return Table("Reasoning: thought where it is needed", columns, tuple(rows))


def points(interval: Interval | None) -> str:
    """`+30 pt (+5 to +50)`; a dash where nothing was measured."""
    if interval is None:
        return "–"
    return f"{interval.share * 100:+.0f} pt ({interval.low * 100:+.0f} to {interval.high * 100:+.0f})"


def _share(interval: Interval | None) -> float | None:
    return interval.share if interval else None
