"""The rows of a preference set: two conversations each, the chosen one and the rejected one."""

from __future__ import annotations

import msgspec

from amigo_local.domain.errors import InputError
from amigo_local.training.row_file import RowFile, Words
from amigo_local.training.samples import Sample


class _Line(msgspec.Struct, frozen=True):
    """A line of either kind of set, so that one that was made for SFT is told by name. Its texts are for people."""

    prompt_ids: list[int] | None = None
    """(prompt,) the chat up to where the answer begins, rendered with the base's chat template."""
    chosen_ids: list[int] | None = None
    rejected_ids: list[int] | None = None
    completion_start: int | None = None


_DECODER = msgspec.json.Decoder(_Line)


class PreferenceFile(RowFile):
    """A row without a gradient is one of two equal answers."""

    words = Words(
        empty="holds no pairs",
        nothing_left="holds no pair to train on: {too_long} are longer than {limit} tokens, "
        "{without_gradient} have two equal answers",
        too_long="{} pairs have a side longer than the limit, and are left out",
        without_gradient="{} pairs have two equal answers, and are left out",
        again="make the set again: amigo-local prepare RECIPE",
    )

    def decode(self, line: bytes, where: str) -> tuple[Sample, Sample]:
        row = _DECODER.decode(line)
        if row.prompt_ids is None or row.chosen_ids is None or row.rejected_ids is None:
            if row.completion_start is not None:
                raise InputError(
                    f"{where}: a single answer, where train.method: dpo needs a chosen and a rejected one",
                    "give data.sources with columns chosen and rejected, or set train.method: sft",
                )
            raise InputError(f"{where}: no prompt_ids, chosen_ids and rejected_ids", self.words.again)
        parts = {"prompt_ids": row.prompt_ids, "chosen_ids": row.chosen_ids, "rejected_ids": row.rejected_ids}
        for name, ids in parts.items():
            if not ids:
                lacking = "no token to predict the answer from" if name == "prompt_ids" else "no token to train on"
                raise InputError(f"{where}: {name} is empty: {lacking}", self.words.again)
        start = len(row.prompt_ids)
        return Sample(row.prompt_ids + row.chosen_ids, start), Sample(row.prompt_ids + row.rejected_ids, start)

    @staticmethod
    def has_gradient(sequences: tuple[Sample, ...]) -> bool:
        chosen, rejected = sequences
        return chosen != rejected
