"""Votes: which of two models' answers a person liked better, one JSON line each in the home folder."""

from __future__ import annotations

import os
from pathlib import Path

import msgspec

from amigo_local.domain.errors import InputError
from amigo_local.domain.generation import Message

VOTES_FILE = "votes.jsonl"


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

    @property
    def about(self) -> tuple[str, frozenset[str]]:
        """Equal for votes on the same two answers to the same request."""
        return self.prompt, frozenset((self.chosen, self.rejected))


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
        except msgspec.MsgspecError:
            corrupt.append(number)
    return votes, corrupt
