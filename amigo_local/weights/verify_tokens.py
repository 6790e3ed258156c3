"""Proof that a tokenizer of transformers and the one in a GGUF are the same: token ids of texts and of chats."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jinja2

from amigo_local.domain.artifact import Figure
from amigo_local.domain.errors import AmigoError
from amigo_local.weights.checkpoint_config import token_id
from amigo_local.weights.gguf_header import GgufHeader
from amigo_local.weights.llama_cpp_model import LlamaCppModel

_HINT = "report this file's tokenizer: reading or writing it is wrong"
_SHOWN = 60  # characters of a text in a message
_SPECIALS = {"bos_token": "bos", "eos_token": "eos", "unk_token": "unknown", "pad_token": "padding"}

Chat = list[dict[str, Any]]
_USER = {"role": "user", "content": "Write a function that adds two numbers."}
_CODE = "def f(x: int) -> str:\n\treturn f'{x:>3}' + \"\\n\"  # <b>&amp;</b> {{ x }} {% if %} <|im_end|> </s> ${y} 🙂\n"
_CHATS: tuple[Chat, ...] = (
    [_USER],
    [{"role": "system", "content": "Answer with code only."}, _USER],
    [_USER, {"role": "assistant", "content": _CODE}, {"role": "user", "content": "  And three?\n\n"}],
    [{"role": "system", "content": ""}, {"role": "user", "content": ""}, {"role": "assistant", "content": ""}],
    [_USER, _USER],  # some templates want roles to alternate
    [{"role": "user", "content": _CODE}, {"role": "assistant", "content": "<think>\nno\n</think>\n\nYes."}],
)
_TOOL = {"name": "add", "arguments": {"a": 1, "b": [2, "ü"]}}
_TOOL_CHAT: Chat = [
    _USER,
    {"role": "assistant", "content": "", "tool_calls": [{"id": "call00001", "type": "function", "function": _TOOL}]},
    {"role": "tool", "name": "add", "tool_call_id": "call00001", "content": '{"sum": 3}'},
]
_TOOLS: list[dict[str, Any]] = [
    {
        "type": "function",
        "function": {
            "name": "add",
            "description": "Adds <two> numbers & says 'ü'.",
            "parameters": {"type": "object", "properties": {"a": {"type": "number"}}, "required": ["a"]},
        },
    }
]


def check_tokens(tokenizer: Any, served: LlamaCppModel, texts: Sequence[str], where: object) -> dict[str, Figure]:
    """Ids of each text, BOS and EOS included, in transformers and in llama.cpp. Raises AmigoError when any differ."""
    differing = [text for text in texts if served.tokenize(text) != tokenizer(text)["input_ids"]]
    if differing:
        raise AmigoError(
            f"{where}: {len(differing)} of {len(texts)} texts get other tokens in transformers than in llama.cpp, "
            f"first {_difference(tokenizer, served, differing[0], add_special=True)}",
            _HINT,
        )
    return {"texts": len(texts), "differing_texts": 0}


def check_chats(tokenizer: Any, header: GgufHeader, served: LlamaCppModel, where: object) -> dict[str, Figure]:
    """The GGUF's chat template against the tokenizer's own, on conversations, and the ids of what they render.

    Both are rendered by transformers, the GGUF's with the special tokens that the GGUF names. A template may refuse a
    conversation, as Gemma's refuse a system role of old; then both must. Returns chat_template, chats and
    refused_chats. Raises AmigoError for the first chat that differs.
    """
    template = header.chat_template
    if bool(template) != bool(tokenizer.chat_template):
        one, other = (header.path, where) if template else (where, header.path)
        raise AmigoError(f"{other}: has no chat template, {one} has one", "unpack or export it again")
    if not template:
        return {"chat_template": False, "chats": 0, "refused_chats": 0}
    specials = _special_tokens(header)
    refused = 0
    cases: list[tuple[Chat, list[dict[str, Any]] | None, bool]]
    cases = [(chat, None, prompt) for chat in _CHATS for prompt in (True, False)]
    if "tools" in template:
        cases += [(chat, _TOOLS, True) for chat in (_CHATS[0], _CHATS[1], _TOOL_CHAT)]
    for chat, tools, prompt in cases:
        asked = {"tools": tools, "add_generation_prompt": prompt}
        expected, fails = _render(tokenizer, chat, asked)
        found, found_fails = _render(tokenizer, chat, asked | specials | {"chat_template": template})
        if (expected, fails) != (found, found_fails):
            raise AmigoError(
                f"{header.path}: its chat template makes {_around(found, expected)} of a chat, "
                f"that of {where} {_around(expected, found)}",
                "unpack or export it again; if it happens again, report it",
            )
        refused += fails
        if not fails and served.tokenize(found, add_special=False) != _ids(tokenizer, found):
            raise AmigoError(
                f"{where}: a rendered chat gets other tokens in transformers than in llama.cpp: "
                f"{_difference(tokenizer, served, found, add_special=False)}",
                _HINT,
            )
    if refused == len(cases):
        raise AmigoError(f"{header.path}: its chat template refuses every chat: {expected}", "take another base")
    return {"chat_template": True, "chats": len(cases), "refused_chats": refused}


def _render(tokenizer: Any, chat: Chat, settings: dict[str, Any]) -> tuple[str, bool]:
    """(what the template makes of a chat, False), or (why it refuses, True)."""
    try:
        return str(tokenizer.apply_chat_template(chat, tokenize=False, **settings)), False
    except (jinja2.TemplateError, TypeError, IndexError) as error:  # whatever a template's expressions raise
        return f"{type(error).__name__}: {error}", True


def _special_tokens(header: GgufHeader) -> dict[str, str]:
    tokens = header.array("tokenizer.ggml.tokens")
    found = {name: token_id(header, which) for name, which in _SPECIALS.items()}
    return {name: str(tokens[number]) for name, number in found.items() if number is not None and number < len(tokens)}


def _ids(tokenizer: Any, text: str, *, add_special: bool = False) -> list[int]:
    ids: list[int] = tokenizer(text, add_special_tokens=add_special)["input_ids"]
    return ids


def _difference(tokenizer: Any, served: LlamaCppModel, text: str, *, add_special: bool) -> str:
    """The text, shortened, and the ids from where they part."""
    mine, theirs = _ids(tokenizer, text, add_special=add_special), served.tokenize(text, add_special=add_special)
    at = next((i for i, (a, b) in enumerate(zip(mine, theirs, strict=False)) if a != b), min(len(mine), len(theirs)))
    return f"{text[:_SHOWN]!r}: from token {at} on {mine[at : at + 4]} and {theirs[at : at + 4]}"


def _around(text: str, other: str) -> str:
    """The part of `text` at which it parts from `other`."""
    at = next((i for i, (a, b) in enumerate(zip(text, other, strict=False)) if a != b), min(len(text), len(other)))
    start = max(0, at - _SHOWN // 2)
    return ("…" if start else "") + repr(text[start : at + _SHOWN // 2])
