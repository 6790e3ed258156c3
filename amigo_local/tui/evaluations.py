"""Evaluations: what is asked of `evaluate` next, and the way through the answers of one."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from typing import Any

from amigo_local.domain.artifact import Figure
from amigo_local.domain.events import Table
from amigo_local.domain.recipe import HUMANEVAL_PROBLEMS, Suite
from amigo_local.tui.saved_state import EvaluateState

STAGE = "evaluate"
SUITES: dict[Suite, str] = {
    "directness": "code at once, nothing else",
    "humaneval": "problems run in a sandbox",
    "context": "uses the names it is given",
    "debugging": "mends bugs; tests are run",
    "reasoning": "thinks first only if hard",
}
"""What each asks, in a few words."""
_PROBLEMS = (8, 16, 24, 41, 82, HUMANEVAL_PROBLEMS)
_TOKENS = (64, 128, 256, 512, 1024, 2048, 4096)

Key = tuple[Figure, Figure]
"""Suite and id of a question."""


# -- What is asked next


def evaluate_params(state: EvaluateState) -> dict[str, Any]:
    """As `evaluate` takes them."""
    params: dict[str, Any] = {"ref": list(state.refs), "max_tokens": state.max_tokens}
    if state.suites:
        params["suite"] = [suite for suite in SUITES if suite in state.suites]
    if state.problems is not None and "humaneval" in state.suites:
        params["problems"] = state.problems
    return params


def evaluate_title(params: dict[str, Any]) -> str:
    """The same as a person would type it."""
    words = [STAGE, *params["ref"]]
    words += [word for suite in params.get("suite", ()) for word in ("--suite", suite)]
    words += ["--problems", str(params["problems"])] if "problems" in params else []
    if params["max_tokens"] != EvaluateState().max_tokens:
        words += ["--max-tokens", str(params["max_tokens"])]
    return shlex.join(words)


def toggle_suite(state: EvaluateState, suite: Suite) -> None:
    state.suites = [known for known in SUITES if (known in state.suites) != (known == suite)]


def step_problems(state: EvaluateState, by: int) -> None:
    found = _next(_PROBLEMS, state.problems or HUMANEVAL_PROBLEMS, by)
    state.problems = None if found == HUMANEVAL_PROBLEMS else found


def step_tokens(state: EvaluateState, by: int) -> None:
    state.max_tokens = _next(_TOKENS, state.max_tokens, by)


def _next(steps: Sequence[int], value: int, by: int) -> int:
    """The next greater or smaller one, where there is any."""
    if by > 0:
        return next((step for step in steps if step > value), value)
    return next((step for step in reversed(steps) if step < value), value)


# -- The way through the answers of one


class Answers:
    """Two tables that `answers` said: all answers, and those that failed."""

    def __init__(self, answers: Table, failed: Table) -> None:
        self.answers, self.failed = answers, failed
        self._order = _questions(answers)
        self._failures = set(_questions(failed))

    def place(self, key: Key) -> str:
        """`3 of 24`"""
        return f"{self._order.index(key) + 1} of {len(self._order)}" if key in self._order else ""

    @property
    def failures(self) -> int:
        """Questions that any model failed."""
        return len(self._failures)

    def step(self, key: Key, by: int, *, failures: bool) -> Key | None:
        """The next question or the one before; with `failures` the next that a model failed. None: there is none."""
        here = self._order.index(key) if key in self._order else -1
        ahead = self._order[here + 1 :] if by > 0 else self._order[: max(here, 0)][::-1]
        return next((other for other in ahead if not failures or other in self._failures), None)


def _questions(table: Table) -> list[Key]:
    """In order, each once."""
    names = [column.name for column in table.columns]
    if "id" not in names or "suite" not in names:
        return []
    place, suite = names.index("id"), names.index("suite")
    return list(dict.fromkeys((row[suite], row[place]) for row in table.rows))
