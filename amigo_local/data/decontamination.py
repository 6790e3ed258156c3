"""Decontamination: whether a text holds a problem that the model will be judged on, and of which evaluation set."""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import chain
from pathlib import Path

import msgspec
import numpy as np
import numpy.typing as npt

from amigo_local.data.evaluation_names import holds_evaluation_ids, is_evaluation_set, is_prose
from amigo_local.data.evaluation_rows import fields_of, read_rows
from amigo_local.data.word_grams import Hashes, Indices, Words, chunks, words_of

__all__ = ["Decontamination", "holds_evaluation_ids", "is_evaluation_set", "load_decontamination"]

RUN_WORDS = 13  # GPT-3 (Brown et al. 2020, appendix C) and most decontamination since
SHORTEST_FIELD_WORDS = 6
"""Requests with at least so many words and fewer than RUN_WORDS count when they occur whole (MBPP's are short)."""
TELLING_WORDS = 3
"""So many words of a run must be more than a number or a letter."""
SHIPPED_INDEX = Path(__file__).parent / "evaluation_index"
GIVEN_TEXTS = "an evaluation's text"

_WORD = re.compile(r"\w+")
_BITS = 22  # a table of 4 MB leaves one in 25 runs to be looked up among the 160,000 that are shipped


class EvaluationSet(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One entry of the shipped index's index.json; its numbers are in `<file>.runs.npy` and `<file>.fields.npy`."""

    name: str
    file: str
    rows: int
    license: str
    source: str


class Fingerprint(msgspec.Struct, frozen=True, kw_only=True):
    """What is known of one evaluation set: numbers of runs of words, none of its text."""

    name: str
    runs: Hashes
    """(n,) sorted: every run of RUN_WORDS words that isn't boilerplate."""
    fields: Hashes
    """(m, 3) of each short request: its words, the number of its first SHORTEST_FIELD_WORDS, the number of all."""


class Decontamination:
    """Asked in batches. Small to pickle: what only speeds it up is made again where it arrives."""

    def __init__(self, sets: Sequence[Fingerprint]) -> None:
        self.sets = tuple(sets)
        self._runs = _Table([known.runs for known in self.sets])
        self._beginnings = _Table([known.fields[:, 1] for known in self.sets])
        self._wholes = {
            length: _Table([known.fields[known.fields[:, 0] == length, 2] for known in self.sets])
            for length in range(SHORTEST_FIELD_WORDS, RUN_WORDS)
        }

    def __reduce__(self) -> tuple[type[Decontamination], tuple[tuple[Fingerprint, ...]]]:
        return Decontamination, (self.sets,)

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(known.name for known in self.sets)

    def found(self, texts: Sequence[Sequence[str]]) -> list[str]:
        """For each pair (its prompt and answers) the evaluation set that it overlaps; empty: none."""
        found = [""] * len(texts)
        for part in chunks([sum(map(len, each)) for each in texts]):
            owner_of_text = np.repeat(np.arange(part.start, part.stop), [len(each) for each in texts[part]])
            words = words_of(list(chain.from_iterable(texts[part])))
            for starts, owners in (self._long_overlaps(words), self._short_overlaps(words)):
                for pair, owner in zip(owner_of_text[words.text_of(starts)].tolist(), owners.tolist(), strict=True):
                    found[pair] = found[pair] or self.sets[owner].name
        return found

    def _long_overlaps(self, words: Words) -> tuple[Indices, Indices]:
        """Where a known run begins, and the index of the set that it is of."""
        starts = words.run_starts(RUN_WORDS)
        places, owners = self._runs.find(words.runs(starts, RUN_WORDS))
        return starts[places], owners

    def _short_overlaps(self, words: Words) -> tuple[Indices, Indices]:
        starts = words.run_starts(SHORTEST_FIELD_WORDS)
        begun, _ = self._beginnings.find(words.runs(starts, SHORTEST_FIELD_WORDS))
        hits: list[tuple[Indices, Indices]] = []
        for length, table in self._wholes.items():
            candidates = starts[begun][words.has_run(starts[begun], length)]
            places, owners = table.find(words.runs(candidates, length))
            hits.append((candidates[places], owners))
        return np.concatenate([starts for starts, _ in hits]), np.concatenate([owners for _, owners in hits])


class _Table:
    """Sorted numbers and whose they are, behind a bitmap that answers `no` for nearly all that aren't in it."""

    def __init__(self, numbers_of_owners: Sequence[Hashes]) -> None:
        numbers = np.concatenate([np.empty(0, np.uint64), *numbers_of_owners])
        owners = np.repeat(np.arange(len(numbers_of_owners)), [len(each) for each in numbers_of_owners])
        self._numbers, first = np.unique(numbers, return_index=True)
        self._owners = owners[first]
        bits = min(_BITS, max(10, len(numbers).bit_length() + 5))
        self._shift = np.uint64(64 - bits)
        self._bitmap = np.zeros(1 << bits, np.bool_)
        self._bitmap[self._numbers >> self._shift] = True

    def find(self, numbers: Hashes) -> tuple[Indices, Indices]:
        """Positions in `numbers` of those that are in the table, and the first owner of each."""
        maybe = np.flatnonzero(self._bitmap[numbers >> self._shift])
        if not len(maybe):
            return maybe, maybe
        at = np.minimum(np.searchsorted(self._numbers, numbers[maybe]), len(self._numbers) - 1)
        same = self._numbers[at] == numbers[maybe]
        return maybe[same], self._owners[at[same]]


def load_decontamination(extra_files: Sequence[Path] = (), texts: Sequence[str] = ()) -> Decontamination:
    """The shipped index, the user's own files of problems (JSON, JSON lines, also .gz), and further raw texts.

    Raises InputError for a file that is missing, unreadable, or holds no text.
    """
    sets = shipped_sets()
    for path in extra_files:
        sets.append(fingerprint(path.name, [fields_of(row) for row in read_rows(path)]))
    if texts:
        sets.append(fingerprint(GIVEN_TEXTS, [[("prompt", text)] for text in texts]))
    return Decontamination(sets)


def shipped_sets(folder: Path = SHIPPED_INDEX) -> list[Fingerprint]:
    entries = msgspec.json.decode((folder / "index.json").read_bytes(), type=list[EvaluationSet])
    return [
        Fingerprint(
            name=entry.name,
            runs=np.load(folder / f"{entry.file}.runs.npy", allow_pickle=False),
            fields=np.load(folder / f"{entry.file}.fields.npy", allow_pickle=False),
        )
        for entry in entries
    ]


def fingerprint(name: str, rows: Sequence[Sequence[tuple[str, str]]]) -> Fingerprint:
    """Of rows that are each (column, text) fields.

    A run that more problems share than chance explains is the set's boilerplate (`#include <vector> …`), which others
    write too, and is left out, as is one of hardly more than numbers. A row that is there twice counts once.
    """
    distinct = list(dict.fromkeys(tuple(row) for row in rows))
    runs: list[Hashes] = []
    fields: list[Hashes] = []
    for row in distinct:
        texts = [text for _, text in row]
        words = words_of(texts)
        starts = words.run_starts(RUN_WORDS)
        runs.append(np.unique(words.runs(starts[_are_telling(texts, starts)], RUN_WORDS)))
        fields.append(_short_fields(words, [is_prose(column) for column, _ in row]))
    numbers, problems = np.unique(np.concatenate([np.empty(0, np.uint64), *runs]), return_counts=True)
    most = max(3, len(distinct) // 50)
    return Fingerprint(
        name=name,
        runs=numbers[problems <= most],
        fields=np.unique(np.concatenate([np.empty((0, 3), np.uint64), *fields]), axis=0),
    )


def _are_telling(texts: Sequence[str], starts: Indices) -> npt.NDArray[np.bool_]:
    """Which of the runs hold enough words; `1, 2, 3, 4, …` and `(a, b, c, …)` are in anybody's code."""
    words = chain.from_iterable(_WORD.findall(text.lower()) for text in texts)
    telling = np.cumsum([0, *(len(word) > 1 and not word[0].isdigit() for word in words)])
    enough: npt.NDArray[np.bool_] = telling[starts + RUN_WORDS] - telling[starts] >= TELLING_WORDS
    return enough


def _short_fields(words: Words, prose: Sequence[bool]) -> Hashes:
    lengths = np.diff(words.starts)
    short = np.array(prose, np.bool_) & (lengths >= SHORTEST_FIELD_WORDS) & (lengths < RUN_WORDS)
    starts, sizes = words.starts[:-1][short], lengths[short]
    return np.column_stack(
        [sizes.astype(np.uint64), words.runs(starts, SHORTEST_FIELD_WORDS), words.runs(starts, sizes)]
    )
