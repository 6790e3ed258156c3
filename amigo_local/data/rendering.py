"""Renders a pair with the checkpoint's own chat template and finds where the completion begins."""

from __future__ import annotations

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


def render(tokenizer: Any, pair: Pair, system: str | None = None) -> Rendered:
    """Token ids of the chat that ends with the pair's completion, cut after its end-of-turn token.

    The boundary is exact: the prompt rendered alone, generation prompt included, must be a prefix of
    the whole, token for token. Raises AmigoError when the template makes that untrue, or refuses
    the messages.
    """
    messages = [{"role": "system", "content": system}] if system else []
    messages.append({"role": "user", "content": pair.prompt})
    prompt_ids = _token_ids(tokenizer, messages, add_generation_prompt=True)
    messages.append({"role": "assistant", "content": pair.completion})
    input_ids = _token_ids(tokenizer, messages, add_generation_prompt=False)
    start = len(prompt_ids)
    if input_ids[:start] != prompt_ids:
        same = next(
            (index for index, (a, b) in enumerate(zip(prompt_ids, input_ids, strict=False)) if a != b), len(input_ids)
        )
        raise AmigoError(
            f"the chat template renders a request differently once it has an answer: token {same} of {start} is "
            f"{tokenizer.decode(prompt_ids[same : same + 1])!r} before and "
            f"{tokenizer.decode(input_ids[same : same + 1])!r} after, so the loss mask can't be placed",
            "edit the checkpoint's chat_template.jinja so that the generation prompt begins the assistant's turn",
        )
    return Rendered(_end_after_turn(tokenizer, input_ids, start), start)


def _token_ids(tokenizer: Any, messages: list[dict[str, str]], add_generation_prompt: bool) -> list[int]:
    from jinja2 import TemplateError

    try:
        ids = tokenizer.apply_chat_template(
            messages, tokenize=True, add_generation_prompt=add_generation_prompt, return_dict=False
        )
    except TemplateError as error:
        roles = ", ".join(message["role"] for message in messages)
        raise AmigoError(
            f"the checkpoint's chat template refuses the messages ({roles}): {error}",
            "leave out the system message, or mend the checkpoint's chat_template.jinja",
        ) from error
    return [int(token) for token in ids]


def _end_after_turn(tokenizer: Any, input_ids: list[int], start: int) -> list[int]:
    """Cut after the last special token of the answer; what a template writes after it is never generated.

    A template that ends the turn with no special token gets the tokenizer's end-of-sequence token:
    every server stops there.
    """
    special = {*tokenizer.all_special_ids, *(i for i, token in tokenizer.added_tokens_decoder.items() if token.special)}
    last = max((index for index in range(start, len(input_ids)) if input_ids[index] in special), default=None)
    if last is not None and not tokenizer.decode(input_ids[last + 1 :]).strip():
        return input_ids[: last + 1]
    if tokenizer.eos_token_id is None:
        raise AmigoError(
            "the chat template ends the answer with no special token and the tokenizer has no end-of-sequence token, "
            "so the model could not learn to stop",
            "set eos_token in the checkpoint's tokenizer_config.json",
        )
    return [*input_ids, int(tokenizer.eos_token_id)]
