"""A file of rows to train on: each is checked once, then read again when its step comes."""

from __future__ import annotations

import hashlib
from abc import abstractmethod
from array import array
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar, NamedTuple, overload

import msgspec

from amigo_local.domain.errors import InputError
from amigo_local.domain.events import Emit, Note
from amigo_local.training.micro_batches import StepRow
from amigo_local.training.samples import Sample


class Words(msgspec.Struct, frozen=True, kw_only=True):
    """How messages speak of a kind of rows; braces stand for counts."""

    empty: str
    nothing_left: str
    too_long: str
    without_gradient: str
    again: str
    """What to do about a file that is not as `prepare` writes it."""


class RowFile(Sequence[StepRow]):
    """What can be trained on of a file, in its order. 16 bytes a row are kept in memory, whatever its length."""

    words: ClassVar[Words]

    @abstractmethod
    def decode(self, line: bytes, where: str) -> tuple[Sample, ...]:
        """A row's sequences, none of them empty. where: what an InputError begins with; msgspec's errors may pass."""

    @staticmethod
    @abstractmethod
    def has_gradient(sequences: tuple[Sample, ...]) -> bool:
        """False where a row would teach nothing."""

    def __init__(self, path: Path, vocabulary: int, max_length_tokens: int | None = None) -> None:
        """Reads and checks the whole file, one row at a time.

        Left out and counted are rows with a sequence longer than `max_length_tokens` (cutting one would teach the
        model to stop short) and rows without a gradient. Raises InputError, naming file and line, for anything else
        that can't be trained on, and when nothing is left.
        """
        self.path, self._vocabulary = path, vocabulary
        self.lengths = array("i")
        """In tokens, of all sequences of a row together, of the rows that are left."""
        self.too_long = self.without_gradient = 0
        self._offsets, self._lines = array("q"), array("i")
        if not path.is_file():
            raise InputError(f"{path}: no such file", "make the training set first: amigo-local prepare RECIPE")
        offset, digest = 0, hashlib.sha256()
        with path.open("rb") as lines:
            for number, line in enumerate(lines, start=1):
                if line.strip():
                    self._admit(self._checked(line, number), offset, number, max_length_tokens)
                offset += len(line)
                digest.update(line)
        self.digest = f"sha256:{digest.hexdigest()}"
        """Of the file as it was read, `samples.file_digest`'s."""
        if not self.lengths:
            self._refuse_all(max_length_tokens)

    def _admit(self, sequences: tuple[Sample, ...], offset: int, number: int, limit: int | None) -> None:
        lengths = [len(sample.input_ids) for sample in sequences]
        if not self.has_gradient(sequences):
            self.without_gradient += 1
        elif limit is not None and max(lengths) > limit:
            self.too_long += 1
        else:
            self._offsets.append(offset)
            self._lines.append(number)
            self.lengths.append(sum(lengths))

    def _checked(self, line: bytes, number: int) -> tuple[Sample, ...]:
        where = f"{self.path}:{number}"
        try:
            sequences = self.decode(line, where)
        except msgspec.DecodeError as error:
            raise InputError(f"{where}: {error}", self.words.again) from error
        for sample in sequences:
            lowest, highest = min(sample.input_ids), max(sample.input_ids)
            if lowest < 0 or highest >= self._vocabulary:
                wrong = lowest if lowest < 0 else highest
                raise InputError(
                    f"{where}: token id {wrong} is outside the base's vocabulary of {self._vocabulary}",
                    f"the set was rendered for another base; {self.words.again}",
                )
        return sequences

    def _refuse_all(self, limit: int | None) -> None:
        if not self.too_long + self.without_gradient:
            raise InputError(f"{self.path} {self.words.empty}", "give the recipe's data.sources something to find")
        left = self.words.nothing_left.format(
            too_long=self.too_long, limit=limit, without_gradient=self.without_gradient
        )
        raise InputError(f"{self.path} {left}", "raise data.max_length_tokens, or look at the answers in the data")

    def tell(self, emit: Emit) -> None:
        """A note on what was left out, if anything was."""
        if self.too_long:
            text = f"{self.path.name}: {self.words.too_long.format(self.too_long)}"
            emit(Note(text, "warning", "raise data.max_length_tokens"))
        if self.without_gradient:
            emit(Note(f"{self.path.name}: {self.words.without_gradient.format(self.without_gradient)}"))

    def __len__(self) -> int:
        return len(self.lengths)

    @overload
    def __getitem__(self, index: int) -> StepRow: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[StepRow]: ...
    def __getitem__(self, index: int | slice) -> StepRow | Sequence[StepRow]:
        if isinstance(index, slice):
            return [self[at] for at in range(*index.indices(len(self)))]
        offset, number = self._offsets[index], self._lines[index]
        try:
            with self.path.open("rb") as file:
                file.seek(offset)
                sequences = self._checked(file.readline(), number)
        except OSError as error:
            text = f"{self.path} can't be read any more: {error.strerror}"
            raise InputError(text, "put it back, and run again") from error
        if sum(len(sample.input_ids) for sample in sequences) != self.lengths[index]:
            raise InputError(f"{self.path}:{number} changed while it was trained on", "run again")
        return StepRow(index, number, sequences)


class TrainingSet(NamedTuple):
    """What `prepare` has made, opened."""

    rows: RowFile
    held_out: RowFile | None = None
    """What evaluations measure; None when there are to be none."""
