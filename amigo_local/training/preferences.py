"""The pairs of a preference set: each checked once, then read again when its step comes."""

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

_AGAIN = "make the set again: amigo-local prepare RECIPE"


class _Line(msgspec.Struct, frozen=True):
    """A line of either kind of set, so that one that was made for SFT is told by name. Its texts are for people."""

    prompt_ids: list[int] | None = None
    """(prompt,) the chat up to where the answer begins, rendered with the base's chat template."""
    chosen_ids: list[int] | None = None
    rejected_ids: list[int] | None = None
    completion_start: int | None = None


class PreferenceFile(Sequence[StepRow]):
    """The pairs of a train.jsonl or held_out.jsonl; the two sequences of a row are the chosen and the rejected chat."""

    def __init__(self, path: Path, vocabulary: int, max_length_tokens: int | None = None) -> None:
        """Reads and checks the whole file, one row at a time.

        Left out and counted are pairs with a side, or a prompt alone, longer than `max_length_tokens` (a cut answer
        would teach the model to stop short) and pairs of equal sides (they have no gradient). Raises InputError,
        naming file and line, for anything else that can't be trained on, and when nothing is left.
        """
        self.path, self._vocabulary = path, vocabulary
        self.lengths = array("i")
        """In tokens, of both sides together, of the pairs that are left."""
        self.completion_tokens = 0
        self.too_long = self.equal = 0
        self._offsets, self._lines = array("q"), array("i")
        self._decoder = msgspec.json.Decoder(_Line)
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

    def _admit(self, sides: tuple[Sample, Sample], offset: int, number: int, limit: int | None) -> None:
        lengths = [len(side.input_ids) for side in sides]
        if sides[0] == sides[1]:
            self.equal += 1
        elif limit is not None and max(lengths) > limit:
            self.too_long += 1
        else:
            self._offsets.append(offset)
            self._lines.append(number)
            self.lengths.append(sum(lengths))
            self.completion_tokens += sum(lengths) - 2 * sides[0].completion_start

    def _checked(self, line: bytes, number: int) -> tuple[Sample, Sample]:
        where = f"{self.path}:{number}"
        try:
            row = self._decoder.decode(line)
        except msgspec.DecodeError as error:
            raise InputError(f"{where}: {error}", _AGAIN) from error
        if row.prompt_ids is None or row.chosen_ids is None or row.rejected_ids is None:
            if row.completion_start is not None:
                raise InputError(
                    f"{where}: a single answer, where train.method: dpo needs a chosen and a rejected one",
                    "give data.sources with columns chosen and rejected, or set train.method: sft",
                )
            raise InputError(f"{where}: no prompt_ids, chosen_ids and rejected_ids", _AGAIN)
        parts = {"prompt_ids": row.prompt_ids, "chosen_ids": row.chosen_ids, "rejected_ids": row.rejected_ids}
        for name, ids in parts.items():
            if not ids:
                lacking = "no token to predict the answer from" if name == "prompt_ids" else "no token to train on"
                raise InputError(f"{where}: {name} is empty: {lacking}", _AGAIN)
            lowest, highest = min(ids), max(ids)
            if lowest < 0 or highest >= self._vocabulary:
                wrong = lowest if lowest < 0 else highest
                raise InputError(
                    f"{where}: token id {wrong} is outside the base's vocabulary of {self._vocabulary}",
                    f"the set was rendered for another base; {_AGAIN}",
                )
        start = len(row.prompt_ids)
        return Sample(row.prompt_ids + row.chosen_ids, start), Sample(row.prompt_ids + row.rejected_ids, start)

    def _refuse_all(self, limit: int | None) -> None:
        if not self.too_long + self.equal:
            raise InputError(f"{self.path} holds no pairs", "give the recipe's data.sources something to find")
        raise InputError(
            f"{self.path} holds no pair to train on: {self.too_long} are longer than {limit} tokens, "
            f"{self.equal} have two equal answers",
            "raise data.max_length_tokens, or look at the answers in the data",
        )

    def tell(self, emit: Emit) -> None:
        """A note on what was left out, if anything was."""
        if self.too_long:
            text = f"{self.path.name}: {self.too_long} pairs have a side longer than the limit, and are left out"
            emit(Note(text, "warning", "raise data.max_length_tokens"))
        if self.equal:
            emit(Note(f"{self.path.name}: {self.equal} pairs have two equal answers, and are left out"))

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
                sides = self._checked(file.readline(), number)
        except OSError as error:
            raise InputError(
                f"{self.path} can't be read any more: {error.strerror}", "put it back, and run again"
            ) from error
        if sum(len(side.input_ids) for side in sides) != self.lengths[index]:
            raise InputError(f"{self.path}:{number} changed while it was trained on", "run again")
        return StepRow(index, number, sides)
