"""The rows of a set of samples: one conversation each, of which the completion is learnt."""

from __future__ import annotations

import msgspec

from amigo_local.domain.errors import InputError
from amigo_local.training.row_file import RowFile, Words
from amigo_local.training.samples import Sample

_DECODER = msgspec.json.Decoder(Sample)


class SampleFile(RowFile):
    """A row without a gradient is one whose completion is empty."""

    words = Words(
        empty="holds no rows",
        nothing_left="holds nothing to train on: {too_long} samples are longer than {limit} tokens, "
        "{without_gradient} have no token after completion_start",
        too_long="{} samples are longer than the limit, and left out",
        without_gradient="{} samples have no completion, and are left out",
        again="make the training set again: amigo-local prepare RECIPE",
    )

    def decode(self, line: bytes, where: str) -> tuple[Sample]:
        try:
            sample = _DECODER.decode(line)
        except msgspec.DecodeError as error:
            if b'"rejected_ids"' not in line:
                raise
            raise InputError(
                f"{where}: a chosen and a rejected answer, where train.method: sft needs a single one",
                "set train.method: dpo, or give data.sources a completion column",
            ) from error
        length = len(sample.input_ids)
        # A completion at index 0 has no token before it to be predicted from; one at the end is empty.
        if not 1 <= sample.completion_start <= length:
            raise InputError(
                f"{where}: completion_start is {sample.completion_start}, expected 1 to {length} for {length} tokens",
                self.words.again,
            )
        return (sample,)

    @staticmethod
    def has_gradient(sequences: tuple[Sample, ...]) -> bool:
        return any(sample.completion_start < len(sample.input_ids) for sample in sequences)
