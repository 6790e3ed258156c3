"""AnswerCheck: how an answer to a request can be judged besides reading it."""

from __future__ import annotations

from typing import Literal

from amigo_local.domain.strict import Strict

Skill = Literal["writing", "context", "debugging", "reasoning"]


class AnswerCheck(Strict, frozen=True, kw_only=True):
    skill: Skill
    """Which evaluation a held-out request belongs to."""
    entry_point: str = ""
    """Name of the function that the answer defines."""
    program: str = ""
    """Python that follows the answer's code and ends normally only when the code is right; empty: can't be run."""
    names: tuple[str, ...] = ()
    """Identifiers that the request supplies and a good answer uses."""
    hard: bool | None = None
    """Whether the problem was found to need thought; None: not measured."""
    pass_rate: float | None = None
    """Of the model's own direct answers that were run; None: none was."""
    samples: int = 0
    """How many those were."""

    def program_for(self, code: str) -> str:
        """What to run: code and check are compiled apart, so that an open string or bracket can't swallow the check."""
        return f'exec(compile({code!r}, "answer", "exec"))\n{self.program}'
