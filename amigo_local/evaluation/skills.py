"""Skills: using what the request supplies, mending a bug, thinking only where needed; how an answer shows each."""

from __future__ import annotations

import ast
import warnings
from collections.abc import Sequence

import msgspec

from amigo_local.domain.answer_check import AnswerCheck
from amigo_local.domain.name_use import names_used
from amigo_local.evaluation.extraction import extract_code, fenced_texts
from amigo_local.evaluation.intervals import difference, mean_share
from amigo_local.evaluation.statistics import Interval, wilson


class ContextUse(msgspec.Struct, frozen=True):
    """One model's answers to requests that supply definitions."""

    answers: int
    used: Interval
    """Mean over answers of the share of supplied names that the answer uses."""
    any_used: Interval
    all_used: Interval


class Fixes(msgspec.Struct, frozen=True):
    """One model's answers to bugs."""

    answers: int
    fixed: Interval
    unchanged: Interval
    """Answers that give the buggy function back."""


class Selectivity(msgspec.Struct, frozen=True):
    """Whether a model thinks where it is needed. None: there were no such problems, or none that can be run."""

    hard: int
    easy: int
    hard_with_chain: Interval | None
    easy_direct: Interval | None
    selectivity: Interval | None
    """Share of hard problems with a chain of thought minus that of easy ones: 1 is perfect, and a model that always
    thinks has 0 as one that never does."""
    hard_passed: Interval | None
    easy_passed: Interval | None


def answer_code(text: str, check: AnswerCheck) -> str:
    """The program in an answer, ready for the check: by its function's name, else every fenced block."""
    if check.entry_point:
        return extract_code(text, check.entry_point, "")
    return "\n".join(fenced_texts(text)) or text


def names_share(code: str, supplied: Sequence[str]) -> float:
    """Share of the supplied names that the code uses; 0 for what doesn't parse."""
    wanted = dict.fromkeys(supplied)
    return len(names_used(code, supplied)) / len(wanted) if wanted else 0.0


def is_unchanged(code: str, request: str, entry_point: str) -> bool:
    """Whether an answer's function is the one in the request, apart from white space and comments."""
    return _function(code, entry_point) == _function(extract_code(request, entry_point, ""), entry_point)


def _function(code: str, name: str) -> str:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", SyntaxWarning)
            tree = ast.parse(code)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return " ".join(code.split())
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name == name:
            return ast.unparse(node)
    return " ".join(code.split())


def context_use(shares: Sequence[float]) -> ContextUse:
    count = len(shares)
    return ContextUse(
        answers=count,
        used=mean_share(shares),
        any_used=wilson(sum(share > 0 for share in shares), count),
        all_used=wilson(sum(share == 1 for share in shares), count),
    )


def fixes(passed: Sequence[bool], unchanged: Sequence[bool]) -> Fixes:
    return Fixes(len(passed), wilson(sum(passed), len(passed)), wilson(sum(unchanged), len(unchanged)))


def selectivity(hard: Sequence[bool], chains: Sequence[bool], passed: Sequence[bool | None]) -> Selectivity:
    """All three in the order of the problems."""
    on_hard = [chain for is_hard, chain in zip(hard, chains, strict=True) if is_hard]
    on_easy = [chain for is_hard, chain in zip(hard, chains, strict=True) if not is_hard]
    with_chain, easy_chain = _share(on_hard), _share(on_easy)
    return Selectivity(
        hard=len(on_hard),
        easy=len(on_easy),
        hard_with_chain=with_chain,
        easy_direct=_share([not chain for chain in on_easy]),
        selectivity=difference(with_chain, easy_chain) if with_chain and easy_chain else None,
        hard_passed=_share([ok for is_hard, ok in zip(hard, passed, strict=True) if is_hard and ok is not None]),
        easy_passed=_share([ok for is_hard, ok in zip(hard, passed, strict=True) if not is_hard and ok is not None]),
    )


def _share(found: Sequence[bool]) -> Interval | None:
    return wilson(sum(found), len(found)) if found else None
