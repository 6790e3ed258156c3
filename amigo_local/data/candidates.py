"""Candidate: a problem with the answers that the model itself gave, as the step `candidates` writes them down."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import msgspec

from amigo_local.data.difficulty import is_hard_by, signs_of
from amigo_local.data.pair import Pair
from amigo_local.data.reasoning import split_reasoning
from amigo_local.domain.errors import InputError
from amigo_local.domain.recipe import DifficultySettings
from amigo_local.domain.verdict import Reason

CANDIDATES_FILE = "candidates.jsonl"


class CandidateAnswer(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    text: str
    tokens: int
    asked_directly: bool
    """Whether the request was for code alone."""
    was_cut: bool = False
    """Ended by its token limit."""
    code: str = ""
    """What was found in it to run; empty: none."""
    passed: bool | None = None
    """None: it wasn't run."""
    reason: Reason | None = None
    detail: str = ""
    """What a failed program raised."""

    @property
    def chain(self) -> str:
        return split_reasoning(self.text)[0]

    @property
    def is_direct(self) -> bool:
        return not self.chain

    @property
    def is_wrong(self) -> bool:
        """It ran and missed. One that was cut or ran out of time may have been right."""
        return self.passed is False and bool(self.code) and not self.was_cut and self.reason != "timeout"


class Candidate(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One line of candidates.jsonl."""

    problem: Pair
    answers: tuple[CandidateAnswer, ...]

    @property
    def was_run(self) -> bool:
        return any(answer.passed is not None for answer in self.answers)

    def direct_pass_rate(self) -> tuple[float | None, int]:
        """(share that passes, how many) of the answers that were run and that give no chain; None of none."""
        judged = [answer.passed for answer in self.answers if answer.passed is not None and answer.is_direct]
        return (sum(judged) / len(judged) if judged else None), len(judged)

    def is_hard(self, hard_below: float) -> bool | None:
        """Measured on the direct answers; None where none of them was run."""
        rate, _ = self.direct_pass_rate()
        return None if rate is None else rate < hard_below

    def looks_hard(self, hard_below: float) -> bool:
        """Measured, or by the signs of the request and of the source's answer."""
        measured = self.is_hard(hard_below)
        if measured is not None:
            return measured
        return is_hard_by(signs_of(self.problem.prompt, "", self.problem.completion), DifficultySettings())


def read_candidates(folder: Path) -> Iterator[Candidate]:
    """Raises InputError where the step `candidates` has written nothing, or something else lies there."""
    file = folder / CANDIDATES_FILE
    decoder = msgspec.json.Decoder(Candidate)
    try:
        with file.open("rb") as lines:
            for number, line in enumerate(lines, start=1):
                try:
                    yield decoder.decode(line)
                except msgspec.MsgspecError as error:
                    raise InputError(
                        f"{file}:{number}: no candidate as this version writes them ({error})",
                        "remove that folder and run the recipe again",
                    ) from error
    except OSError as error:
        raise InputError(
            f"{file} can't be read: {error.strerror or error}", "run the recipe again: it asks the model anew"
        ) from error
