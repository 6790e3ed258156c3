"""Ballot: takes a person's vote on the two answers of a turn, typed as `:1`, `:2` or `:0`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec

from amigo_local.data.votes import VOTES_FILE, Vote, append_vote
from amigo_local.domain.errors import InputError
from amigo_local.domain.generation import Message

HOW = "Which is better? :1 the first, :2 the second (kept for training: votes: mine), :0 takes it back."
_WORDS = (":0", ":1", ":2")


class Ballot:
    """Open after a turn with two whole answers, until the next one."""

    def __init__(self, home: Path, models: Sequence[str], clock: Callable[[], float]) -> None:
        self._home, self._models, self._clock = home, models, clock
        self._sides: tuple[str, ...] = ()
        self._prompt = ""
        self._history: Sequence[tuple[Message, ...]] = ()
        self._given: Vote | None = None
        self._explained = False

    def open(self, prompt: str, answers: tuple[str, ...], history: Sequence[tuple[Message, ...]]) -> str:
        """What to tell the person: how to vote, the first time; else nothing."""
        if len(self._models) != 2 or len(answers) != 2 or not all(answers):
            return ""
        self._prompt, self._sides, self._history, self._given = prompt, answers, history, None
        explained, self._explained = self._explained, True
        return "" if explained else HOW

    def close(self) -> None:
        self._sides, self._given = (), None

    def hear(self, line: str) -> str | None:
        """The reply to a vote; None when the line is none, but something to ask the models."""
        if line not in _WORDS or len(self._models) != 2:
            return None
        if not self._sides:
            return "There are no two whole answers to vote on."
        try:
            return self._take_back() if line == ":0" else self._count(int(line[1:]) - 1)
        except InputError as error:
            return f"{error.message}\n  hint: {error.hint}"

    def _count(self, side: int) -> str:
        if self._sides[0].strip() == self._sides[1].strip():
            return "Both answers are the same: nothing to learn from."
        vote = Vote(
            time=self._clock(),
            prompt=self._prompt,
            chosen=self._sides[side],
            rejected=self._sides[1 - side],
            chosen_model=self._models[side],
            rejected_model=self._models[1 - side],
            history=self._history[side] if side < len(self._history) else (),
        )
        append_vote(self._home, vote)
        self._given = vote
        return f"Voted for {self._models[side]}, in {self._home / VOTES_FILE}."

    def _take_back(self) -> str:
        if self._given is None:
            return "No vote was given."
        append_vote(self._home, msgspec.structs.replace(self._given, time=self._clock(), withdrawn=True))
        self._given = None
        return "The vote is taken back."
