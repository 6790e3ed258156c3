"""Preference: a request with a better and a worse answer, and the row that DPO trains on."""

from __future__ import annotations

import msgspec

from amigo_local.data.pair import Pair
from amigo_local.domain.answer_check import AnswerCheck


class Preference(Pair, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """`completion` is the better answer. It must hold what any answer that is trained on must; what is wrong with
    the worse one may be just that."""

    rejected: str

    @property
    def answers(self) -> tuple[str, ...]:
        return (self.completion, self.rejected)


class PreferenceRow(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One line of the train.jsonl and held_out.jsonl of a preference set."""

    prompt: str
    chosen: str
    rejected: str
    source: str
    module: str
    name: str
    license: str
    language: str = ""
    check: AnswerCheck | None = None
    """How an answer to a held-out request is judged."""
    prompt_ids: list[int]
    """(prompt,) the chat up to where the answer begins; the same for both."""
    chosen_ids: list[int]
    """(answer,) ends, as rejected_ids does, with the token that ends the answer."""
    rejected_ids: list[int]

    @property
    def answers(self) -> tuple[str, ...]:
        return (self.chosen, self.rejected)

    @property
    def completion(self) -> str:
        """What the model is meant to say, for whoever checks it on held-out rows of either kind of set."""
        return self.chosen

    @property
    def input_ids(self) -> list[int]:
        """(sequence,) the whole chat that ends with the better answer."""
        return self.prompt_ids + self.chosen_ids

    @property
    def parts(self) -> dict[str, list[int]]:
        return {"masked": self.prompt_ids, "chosen": self.chosen_ids, "rejected": self.rejected_ids}
