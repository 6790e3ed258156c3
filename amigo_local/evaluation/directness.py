"""Directness: how much a model says before, and besides, the code of its answer."""

from __future__ import annotations

import ast
import re
import statistics
import warnings
from collections.abc import Sequence

import msgspec

from amigo_local.domain.code_start import find_code
from amigo_local.domain.generation import Answer
from amigo_local.evaluation.statistics import Interval, wilson

_ONE_BLOCK = re.compile(r"```[^\n`]*\n(?:(?!^[ \t]*```).*\n)*[ \t]*```", re.MULTILINE)


class Opening(msgspec.Struct, frozen=True):
    """How one answer begins."""

    has_code: bool
    at_once: bool
    """Nothing but white space stands before the code."""
    tokens_before_code: int | None
    """None: no code came."""
    only_code: bool = False
    """One whole fenced block, or a text that is Python, and nothing besides."""


class Directness(msgspec.Struct, frozen=True):
    """One model's answers together. Medians and means are over the answers that hold code."""

    answers: int
    with_code: Interval
    at_once: Interval
    only_code: Interval
    median_tokens_before_code: float | None
    mean_tokens_before_code: float | None


def opening_of(answer: Answer) -> Opening:
    """Judges the text; the tokens are those counted while streaming."""
    start = find_code(answer.text)
    if start.found_at is None:
        return Opening(False, False, None)
    if start.at_once:
        return Opening(True, True, 0, is_only_code(answer.text))
    return Opening(True, False, answer.tokens_said_before_code)


def is_only_code(text: str) -> bool:
    """Whether an answer is code and nothing else. One that was cut inside its block is not."""
    text = text.strip()
    if text.startswith("```"):
        return _ONE_BLOCK.fullmatch(text) is not None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", SyntaxWarning)
            ast.parse(text)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False
    return True


def directness_of(openings: Sequence[Opening]) -> Directness:
    tokens = [opening.tokens_before_code for opening in openings if opening.tokens_before_code is not None]
    return Directness(
        answers=len(openings),
        with_code=wilson(sum(opening.has_code for opening in openings), len(openings)),
        at_once=wilson(sum(opening.at_once for opening in openings), len(openings)),
        only_code=wilson(sum(opening.only_code for opening in openings), len(openings)),
        median_tokens_before_code=float(statistics.median(tokens)) if tokens else None,
        mean_tokens_before_code=statistics.fmean(tokens) if tokens else None,
    )
