"""Ballot: takes a person's vote on the two answers of a turn, typed as `:1`, `:2`, `:=`, `:x` or `:0`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

from amigo_local.data.votes import VOTES_FILE, Choice, Vote, append_vote, can_vote, taken_back, vote_on
from amigo_local.domain.errors import InputError
from amigo_local.domain.generation import Message

HOW = (
    "Which is better? :1 the first, :2 the second (kept for training: votes: mine), := they are as good,"
    " :x both are bad, :0 takes it back."
)
_CHOICES: Mapping[str, Choice] = MappingProxyType({":1": "first", ":2": "second", ":=": "tie", ":x": "both_bad"})
_TAKE_BACK = ":0"


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
        if len(self._models) != 2 or not can_vote(answers):
            return ""
        self._prompt, self._sides, self._history, self._given = prompt, answers, history, None
        explained, self._explained = self._explained, True
        return "" if explained else HOW

    def close(self) -> None:
        self._sides, self._given = (), None

    def hear(self, line: str) -> str | None:
        """The reply to a vote; None when the line is none, but something to ask the models."""
        if len(self._models) != 2 or (line not in _CHOICES and line != _TAKE_BACK):
            return None
        try:
            return self._take_back() if line == _TAKE_BACK else self._count(_CHOICES[line])
        except InputError as error:
            return f"{error.message}\n  hint: {error.hint}"

    def _count(self, choice: Choice) -> str:
        vote = vote_on(self._prompt, self._sides, self._models, choice, time=self._clock(), histories=self._history)
        append_vote(self._home, vote)
        self._given = vote
        path = self._home / VOTES_FILE
        if vote.verdict == "better":
            return f"Voted for {vote.chosen_model}, in {path}."
        return f"{'Both are as good' if vote.verdict == 'tie' else 'Both are bad'}: kept in {path}, not trained on."

    def _take_back(self) -> str:
        if not self._sides:
            return "There are no two whole answers to vote on."
        if self._given is None:
            return "No vote was given."
        append_vote(self._home, taken_back(self._given, self._clock()))
        self._given = None
        return "The vote is taken back."
