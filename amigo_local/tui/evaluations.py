"""Evaluations: what is asked of `evaluate` next, which ones lie in this home, and the way through their answers."""

from __future__ import annotations

import shlex
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from amigo_local.domain.artifact import Artifact, Figure
from amigo_local.domain.events import Column, Table
from amigo_local.domain.recipe import Suite
from amigo_local.domain.run_state import RunState, StageState
from amigo_local.engine.workspace import Workspace
from amigo_local.tui.saved_state import EvaluateState

STAGE = "evaluate"
HUMANEVAL_PROBLEMS = 164
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
_COLUMNS = (Column("models"), Column("made"), Column("suites"), Column("run"), Column("evaluation"))

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


def models_of(run: RunState) -> list[str]:
    """Base and refined model of a loop, as far as it has come; empty for a run of something else."""
    made = [stage.artifact for stage in run.stages if stage.artifact]
    for artifact in reversed(made):
        refs = artifact.params.get("refs")
        if artifact.kind == "report" and isinstance(refs, list) and len(refs) == 2:
            return [str(ref) for ref in refs]
    base = [str(each.params["ref"]) for each in made if each.kind in ("tokenizer", "nf4") and each.params.get("ref")]
    tags = [each.figures.get("tag") for each in made if each.kind == "registration"]
    return base[:1] + [f"ollama:{tag}" for tag in tags[-1:] if tag]


def evaluation_in(run: RunState) -> StageState | None:
    """The evaluation that goes on in a run, else its last one."""
    found = [stage for stage in run.stages if stage.stage == STAGE]
    return next((stage for stage in found if stage.status == "running"), found[-1] if found else None)


# -- Those that lie here


def newest_evaluation(workspace: Workspace) -> str:
    """Its folder; empty when there is none."""
    return next((artifact.path for artifact in reversed(_evaluations(workspace))), "")


def past_evaluations(workspace: Workspace, write: Callable[[str], str]) -> Table:
    """Newest first. write: how a REF is shown."""
    rows = []
    for artifact in reversed(_evaluations(workspace)):
        params: Any = artifact.params
        models = " → ".join(write(str(ref)) for ref in params.get("refs", ())) or "?"
        models += " + adapter" if params.get("adapter") else ""
        suites = ", ".join((params.get("settings") or {}).get("suites", ()))
        rows.append((models, _when(artifact.created), suites, artifact.run_id, artifact.path))
    return Table("Evaluations", _COLUMNS, tuple(rows))


def _evaluations(workspace: Workspace) -> list[Artifact]:
    return [each for each in workspace.artifacts() if each.kind == "report" and Path(each.path).is_dir()]


def _when(created: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(created))


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
