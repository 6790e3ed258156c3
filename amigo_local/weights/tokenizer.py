"""The tokenizer inside a GGUF, written as the files that transformers and sentencepiece load."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from amigo_local.domain.errors import InputError
from amigo_local.weights.checkpoint_config import token_id
from amigo_local.weights.gguf_cursor import described
from amigo_local.weights.gguf_header import GgufHeader
from amigo_local.weights.tokenizer_bpe import bpe_tokenizer
from amigo_local.weights.tokenizer_spm import adds_prefix, spm_model_file, spm_tokenizer
from amigo_local.weights.vocabulary import CONTROL, END_TEXTS, USER_DEFINED, Vocabulary, read_vocabulary

_SPECIALS = {"bos": "bos_token", "eos": "eos_token", "unknown": "unk_token", "padding": "pad_token"}


def write_tokenizer(header: GgufHeader, out_dir: Path) -> list[int]:
    """Writes tokenizer.json and tokenizer_config.json, chat_template.jinja and tokenizer.model where there is one.

    Returns the ids that end an answer: the stated end of text first, then end of turn and well-known control tokens.
    Raises InputError for a tokenizer model or pre-tokenizer that isn't mapped.
    """
    vocabulary = read_vocabulary(header)
    if vocabulary.model == "gpt2":
        tokenizer = bpe_tokenizer(header, vocabulary)
    elif vocabulary.model == "llama":
        tokenizer = spm_tokenizer(header, vocabulary)
        with (out_dir / "tokenizer.model").open("wb") as file:
            file.writelines(spm_model_file(header, vocabulary))
    else:
        raise InputError(
            f"{header.path}: tokenizer model {described(vocabulary.model)} is not supported",
            "supported are gpt2 (byte-level BPE) and llama (sentencepiece)",
        )
    tokenizer.write(out_dir / "tokenizer.json")
    settings = json.dumps(_settings(header, vocabulary), ensure_ascii=False, indent=2)
    (out_dir / "tokenizer_config.json").write_text(settings + "\n", encoding="utf-8")
    if header.chat_template is not None:
        (out_dir / "chat_template.jinja").write_text(header.chat_template, encoding="utf-8", newline="")
    return _stop_ids(header, vocabulary)


def _settings(header: GgufHeader, vocabulary: Vocabulary) -> dict[str, Any]:
    settings: dict[str, Any] = {
        # The generic class takes tokenizer.json as it is; transformers' own llama and gemma classes rebuild it.
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": header.context_length,
        "clean_up_tokenization_spaces": False,
        "add_bos_token": vocabulary.adds_bos,
        "add_eos_token": vocabulary.adds_eos,
    }
    for which, name in _SPECIALS.items():
        number = token_id(header, which)
        if number is not None and number < len(vocabulary.tokens):
            settings[name] = vocabulary.tokens[number]
    if vocabulary.model == "llama":
        # Where llama.cpp's converter looks for what tokenizer.model can't say.
        settings["add_prefix_space"] = adds_prefix(header)
        settings["added_tokens_decoder"] = {
            str(token.pop("id")): token for token in vocabulary.added_tokens(CONTROL, USER_DEFINED)
        }
    return settings


def stop_token_ids(header: GgufHeader) -> list[int]:
    """What `write_tokenizer` returns."""
    return _stop_ids(header, read_vocabulary(header))


def _stop_ids(header: GgufHeader, vocabulary: Vocabulary) -> list[int]:
    known = [number for number in vocabulary.ids(CONTROL) if vocabulary.tokens[number] in END_TEXTS]
    stated = [number for which in ("eos", "eot") if (number := token_id(header, which)) is not None]
    return list(dict.fromkeys(stated + known))
