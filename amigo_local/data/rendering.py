"""Renders pairs with the checkpoint's own chat template and finds where each completion begins."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from amigo_local.data.pair import Pair
from amigo_local.domain.errors import AmigoError, InputError


class Rendered(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    input_ids: list[int]
    """(sequence,) token ids of the whole chat, ending with the token that ends the answer."""
    completion_start: int
    """Index of the first trained token; everything before it is masked out of the loss."""


def load_tokenizer(checkpoint_dir: Path) -> Any:
    """transformers' tokenizer of a checkpoint directory; InputError when it has none or no chat template."""
    from transformers import AutoTokenizer

    hint = "unpack the model again: amigo-local unpack REF --out DIR"
    if not checkpoint_dir.is_dir():
        raise InputError(f"{checkpoint_dir}: no such checkpoint directory", hint)
    try:
        tokenizer = AutoTokenizer.from_pretrained(checkpoint_dir, local_files_only=True)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{checkpoint_dir}: its tokenizer can't be loaded ({error})", hint) from error
    if not tokenizer.chat_template:
        raise InputError(
            f"{checkpoint_dir}: its tokenizer has no chat template, so there is no saying how a request is put to it",
            "take an instruct model, or put a chat_template.jinja into the checkpoint",
        )
    return tokenizer


class BoundaryMoved(AmigoError):
    """The request's tokens aren't the beginning of the whole chat's, so there is no place for the loss mask."""


class Renderer:
    """A checkpoint's chat template and tokenizer, for many requests at once."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        added = tokenizer.added_tokens_decoder.items()
        self._special = {*tokenizer.all_special_ids, *(index for index, token in added if token.special)}

    def render(
        self, chats: Sequence[tuple[str, tuple[str, ...]]], system: str | None = None
    ) -> list[tuple[Rendered, ...] | BoundaryMoved]:
        """Of each request, one chat for each of its answers, cut after its end-of-turn token.

        The boundary is exact: the prompt rendered alone, generation prompt included, must be a prefix of
        the whole, token for token; a request for which the template makes that untrue comes back as the error.
        Raises AmigoError when the template refuses the messages or writes no end.
        """
        before = [{"role": "system", "content": system}] if system else []
        asked = [[*before, {"role": "user", "content": prompt}] for prompt, _ in chats]
        whole = [
            [*messages, {"role": "assistant", "content": answer}]
            for messages, (_, answers) in zip(asked, chats, strict=True)
            for answer in answers
        ]
        asked_ids = self._token_ids(asked, add_generation_prompt=True)
        whole_ids = iter(self._token_ids(whole, add_generation_prompt=False))
        found: list[tuple[Rendered, ...] | BoundaryMoved] = []
        for prompt_ids, (_, answers) in zip(asked_ids, chats, strict=True):
            start = len(prompt_ids)
            sides = [next(whole_ids) for _ in answers]
            moved = next((ids for ids in sides if ids[:start] != prompt_ids), None)
            if moved is None:
                found.append(tuple(Rendered(self._end_after_turn(ids, start), start) for ids in sides))
            else:
                found.append(self._boundary_moved(prompt_ids, moved))
        return found

    def _token_ids(self, chats: list[list[dict[str, str]]], add_generation_prompt: bool) -> list[list[int]]:
        from jinja2 import TemplateError

        if not chats:
            return []
        try:
            ids: list[list[int]] = self.tokenizer.apply_chat_template(
                chats,
                tokenize=True,
                add_generation_prompt=add_generation_prompt,
                return_dict=False,
                tokenizer_kwargs={"return_attention_mask": False, "return_token_type_ids": False},
            )
        except TemplateError as error:
            roles = ", ".join(message["role"] for message in chats[0])
            raise AmigoError(
                f"the checkpoint's chat template refuses the messages ({roles}): {error}",
                "leave out the system message, or mend the checkpoint's chat_template.jinja",
            ) from error
        return ids

    def _boundary_moved(self, prompt_ids: list[int], ids: list[int]) -> BoundaryMoved:
        start, decode = len(prompt_ids), self.tokenizer.decode
        same = next((at for at, (a, b) in enumerate(zip(prompt_ids, ids, strict=False)) if a != b), len(ids))
        return BoundaryMoved(
            f"the chat template renders a request differently once it has an answer: token {same} of {start} is "
            f"{decode(prompt_ids[same : same + 1])!r} before and "
            f"{decode(ids[same : same + 1])!r} after, so the loss mask can't be placed",
            "edit the checkpoint's chat_template.jinja so that the generation prompt begins the assistant's turn",
        )

    def _end_after_turn(self, input_ids: list[int], start: int) -> list[int]:
        """Cut after the last special token of the answer; what a template writes after it is never generated.

        A template that ends the turn with no special token gets the tokenizer's end-of-sequence token:
        every server stops there.
        """
        special = self._special
        last = next((at for at in range(len(input_ids) - 1, start - 1, -1) if input_ids[at] in special), None)
        rest = input_ids[last + 1 :] if last is not None else []
        if last is not None and not (rest and self.tokenizer.decode(rest).strip()):
            return input_ids[: last + 1]
        if self.tokenizer.eos_token_id is None:
            raise AmigoError(
                "the chat template ends the answer with no special token and the tokenizer has no end-of-sequence "
                "token, so the model could not learn to stop",
                "set eos_token in the checkpoint's tokenizer_config.json",
            )
        return [*input_ids, int(self.tokenizer.eos_token_id)]


def render(tokenizer: Any, pair: Pair, system: str | None = None) -> Rendered:
    """One pair's chat. Raises BoundaryMoved, and AmigoError as Renderer does."""
    (found,) = Renderer(tokenizer).render([(pair.prompt, (pair.completion,))], system)
    if isinstance(found, BoundaryMoved):
        raise found
    return found[0]
