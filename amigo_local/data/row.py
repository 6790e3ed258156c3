"""Row: one line of the files that `prepare` writes and that training and evaluation read."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import msgspec

from amigo_local.data.preferences import PreferenceRow
from amigo_local.domain.answer_check import AnswerCheck

TRAIN_FILE = "train.jsonl"
HELD_OUT_FILE = "held_out.jsonl"
STATS_FILE = "stats.json"
DIFFICULTY_FILE = "difficulty.jsonl"


class Row(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One line of the train.jsonl and held_out.jsonl of a set of single answers."""

    prompt: str
    completion: str
    source: str
    module: str
    name: str
    license: str
    language: str = ""
    check: AnswerCheck | None = None
    """How an answer to a held-out request is judged."""
    input_ids: list[int]
    """(sequence,) the whole chat, ending with the token that ends the answer."""
    completion_start: int
    """Labels are -100 before this index and equal to input_ids from it on."""

    @property
    def answers(self) -> tuple[str, ...]:
        return (self.completion,)

    @property
    def parts(self) -> dict[str, list[int]]:
        """Token ids of the prompt, then those of each answer."""
        return {"masked": self.input_ids[: self.completion_start], "trained": self.input_ids[self.completion_start :]}


AnyRow = Row | PreferenceRow
"""All rows of one data set are of one kind."""


def read_rows(path: Path) -> list[AnyRow]:
    """The rows of a file that prepare wrote; of preferences, `completion` and `input_ids` are the chosen side."""
    return list(iterate_rows(path))


def iterate_rows(path: Path) -> Iterator[AnyRow]:
    """The same one by one, for files of any length. Raises msgspec.MsgspecError for other rows than prepare's."""
    decoder: msgspec.json.Decoder[AnyRow] | None = None
    with path.open("rb") as file:
        for line in file:
            decoder = decoder or row_decoder("rejected_ids" in msgspec.json.decode(line, type=dict[str, msgspec.Raw]))
            yield decoder.decode(line)


def row_decoder(preferences: bool) -> msgspec.json.Decoder[AnyRow]:
    return msgspec.json.Decoder(PreferenceRow if preferences else Row)
