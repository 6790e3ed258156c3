"""The rows of train.jsonl or held_out.jsonl: each checked once, then read again when its step comes."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from pathlib import Path
from typing import overload

import msgspec

from amigo_local.domain.errors import InputError
from amigo_local.domain.events import Emit, Note
from amigo_local.training.micro_batches import StepRow
from amigo_local.training.samples import Sample

TRAINING_FILE = "train.jsonl"
HELD_OUT_FILE = "held_out.jsonl"
_AGAIN = "make the training set again: amigo-local prepare RECIPE"


class SampleFile(Sequence[StepRow]):
    """What can be trained on of a file, in its order. 16 bytes a row are kept in memory, whatever its length."""

    def __init__(self, path: Path, vocabulary: int, max_length_tokens: int | None = None) -> None:
        """Reads and checks the whole file, one row at a time.

        Left out and counted are rows longer than `max_length_tokens` (cutting one would teach the model to stop
        short) and rows whose completion is empty. Raises InputError, naming file and line, for anything else that
        can't be trained on, and when nothing is left.
        """
        self.path, self._vocabulary = path, vocabulary
        self.lengths = array("i")
        """In tokens, of the rows that are left."""
        self.completion_tokens = 0
        self.too_long = self.without_completion = 0
        self._offsets, self._lines = array("q"), array("i")
        self._decoder = msgspec.json.Decoder(Sample)
        if not path.is_file():
            raise InputError(f"{path}: no such file", "make the training set first: amigo-local prepare RECIPE")
        offset = 0
        with path.open("rb") as lines:
            for number, line in enumerate(lines, start=1):
                if line.strip():
                    self._admit(self._checked(line, number), offset, number, max_length_tokens)
                offset += len(line)
        if not self.lengths:
            self._refuse_all(max_length_tokens)

    def _admit(self, sample: Sample, offset: int, number: int, limit: int | None) -> None:
        length = len(sample.input_ids)
        if sample.completion_start == length:
            self.without_completion += 1
        elif limit is not None and length > limit:
            self.too_long += 1
        else:
            self._offsets.append(offset)
            self._lines.append(number)
            self.lengths.append(length)
            self.completion_tokens += length - sample.completion_start

    def _checked(self, line: bytes, number: int) -> Sample:
        where = f"{self.path}:{number}"
        try:
            sample = self._decoder.decode(line)
        except msgspec.DecodeError as error:
            if b'"rejected_ids"' in line:
                raise InputError(
                    f"{where}: a chosen and a rejected answer, where train.method: sft needs a single one",
                    "set train.method: dpo, or give data.sources a completion column",
                ) from error
            raise InputError(f"{where}: {error}", _AGAIN) from error
        length = len(sample.input_ids)
        # A completion at index 0 has no token before it to be predicted from; one at the end is empty.
        if not 1 <= sample.completion_start <= length:
            raise InputError(
                f"{where}: completion_start is {sample.completion_start}, expected 1 to {length} for {length} tokens",
                _AGAIN,
            )
        lowest, highest = min(sample.input_ids), max(sample.input_ids)
        if lowest < 0 or highest >= self._vocabulary:
            wrong = lowest if lowest < 0 else highest
            raise InputError(
                f"{where}: token id {wrong} is outside the base's vocabulary of {self._vocabulary}",
                f"the set was rendered for another base; {_AGAIN}",
            )
        return sample

    def _refuse_all(self, limit: int | None) -> None:
        if not self.too_long + self.without_completion:
            raise InputError(f"{self.path} holds no rows", "give the recipe's data.sources something to find")
        raise InputError(
            f"{self.path} holds nothing to train on: {self.too_long} samples are longer than {limit} tokens, "
            f"{self.without_completion} have no token after completion_start",
            "raise data.max_length_tokens, or look at the answers in the data",
        )

    def tell(self, emit: Emit) -> None:
        """A note on what was left out, if anything was."""
        if self.too_long:
            text = f"{self.path.name}: {self.too_long} samples are longer than the limit, and left out"
            emit(Note(text, "warning", "raise data.max_length_tokens"))
        if self.without_completion:
            emit(Note(f"{self.path.name}: {self.without_completion} samples have no completion, and are left out"))

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
                sample = self._checked(file.readline(), number)
        except OSError as error:
            text = f"{self.path} can't be read any more: {error.strerror}"
            raise InputError(text, "put it back, and run again") from error
        if len(sample.input_ids) != self.lengths[index]:
            raise InputError(f"{self.path}:{number} changed while it was trained on", "run again")
        return StepRow(index, number, (sample,))
