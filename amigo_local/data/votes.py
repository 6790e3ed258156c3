"""Votes: what a person says of two models' answers to one request, one JSON line each in the home folder."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, get_args

import msgspec

from amigo_local.domain.errors import InputError
from amigo_local.domain.generation import Message

VOTES_FILE = "votes.jsonl"

Verdict = Literal["better", "tie", "both_bad"]
Choice = Literal["first", "second", "tie", "both_bad"]
CHOICES: tuple[Choice, ...] = get_args(Choice)


class Vote(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True, omit_defaults=True):
    time: float
    """Seconds since the epoch."""
    prompt: str
    chosen: str
    rejected: str
    chosen_model: str
    rejected_model: str
    history: tuple[Message, ...] = ()
    """Earlier turns on the side of the better answer."""
    withdrawn: bool = False
    """Takes back what was said of these two answers; which is chosen then means nothing."""
    verdict: Verdict = "better"
    """tie: both are as good; both_bad: neither is an answer to learn from. `chosen` then is the first of the two."""
    blind: bool = False
    """The names of the models were hidden when the person chose."""

    @property
    def about(self) -> tuple[str, frozenset[str]]:
        """Equal for votes on the same two answers to the same request."""
        return self.prompt, frozenset((self.chosen, self.rejected))

    def says_the_same(self, other: Vote) -> bool:
        """Of two votes on the same two answers."""
        return self.verdict == other.verdict and (self.verdict != "better" or self.chosen == other.chosen)


def vote_on(
    prompt: str,
    answers: Sequence[str],
    models: Sequence[str],
    choice: Choice,
    *,
    time: float,
    histories: Sequence[tuple[Message, ...]] = (),
    blind: bool = False,
) -> Vote:
    """The vote that a choice between two whole answers is; `time` in seconds since the epoch, `histories` the earlier
    turns of each side. Raises InputError when there is nothing to choose between."""
    if not can_vote(answers):
        raise InputError("There are no two whole answers to vote on.", "ask both models again, or something else")
    if answers[0].strip() == answers[1].strip():
        raise InputError(
            "Both answers are the same: nothing to learn from.", "ask something else, or at a temperature above 0"
        )
    side = 1 if choice == "second" else 0
    verdict: Verdict = "better"
    if choice in ("tie", "both_bad"):
        verdict = choice
    return Vote(
        time=time,
        prompt=prompt,
        chosen=answers[side],
        rejected=answers[1 - side],
        chosen_model=models[side],
        rejected_model=models[1 - side],
        history=histories[side] if side < len(histories) else (),
        verdict=verdict,
        blind=blind,
    )


def can_vote(answers: Sequence[str]) -> bool:
    """Whether there are two answers, and both say something."""
    return len(answers) == 2 and all(answer.strip() for answer in answers)


def taken_back(vote: Vote, time: float) -> Vote:
    """What is appended to take a vote back."""
    return msgspec.structs.replace(vote, time=time, withdrawn=True)


def append_vote(home: Path, vote: Vote) -> None:
    """On disk when this returns. A line that a kill has torn is ended first, so that it spoils no other.

    Raises InputError where the home folder can't be written.
    """
    path = home / VOTES_FILE
    try:
        home.mkdir(parents=True, exist_ok=True)
        with path.open("ab+") as file:
            if file.tell():
                file.seek(-1, os.SEEK_END)
                torn = file.read(1) != b"\n"
            else:
                torn = False
            file.write((b"\n" if torn else b"") + msgspec.json.encode(vote) + b"\n")
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise InputError(
            f"the vote can't be written to {path}: {error.strerror or error}", "choose another home with --home DIR"
        ) from error


def read_votes(path: Path) -> tuple[list[tuple[int, Vote]], list[int]]:
    """(line number, vote) of every whole line in order, and the numbers of those that are none.

    Raises InputError when the file isn't there or can't be read.
    """
    try:
        content = path.read_bytes()
    except FileNotFoundError as error:
        raise InputError(
            f"there are no votes at {path}", "amigo-local chat OLD NEW, and :1 or :2 after the answers"
        ) from error
    except OSError as error:
        raise InputError(f"{path} can't be read: {error.strerror or error}", "check the path") from error
    decoder = msgspec.json.Decoder(Vote)
    votes: list[tuple[int, Vote]] = []
    corrupt: list[int] = []
    for number, line in enumerate(content.split(b"\n"), start=1):
        if not line.strip():
            continue
        try:
            votes.append((number, decoder.decode(line)))
        except (msgspec.MsgspecError, UnicodeDecodeError):
            corrupt.append(number)
    return votes, corrupt
