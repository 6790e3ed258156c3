"""Byte-level BPE: a GGUF's `gpt2` tokenizer as tokenizer.json, by the name of its pre-tokenizer."""

from __future__ import annotations

from typing import Any

from amigo_local.domain.errors import InputError
from amigo_local.weights.checkpoint_config import token_id
from amigo_local.weights.gguf_cursor import described
from amigo_local.weights.gguf_header import GgufHeader
from amigo_local.weights.tokenizer_json import TokenizerJson
from amigo_local.weights.vocabulary import CONTROL, UNUSED, USER_DEFINED, Vocabulary

# The regular expressions of llm_tokenizer_bpe in llama-vocab.cpp, character for character: its adaptations of Tekken's
# and GPT-4o's differ from the models' own on marks and on capitals beyond ASCII, and what is served decides.
_CONTRACTIONS = "(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])"
_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)"
_LLAMA3 = _CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_QWEN2 = _LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")
_UPPER, _LOWER = r"((?=[\p{L}])([^a-z]))", r"((?=[\p{L}])([^A-Z]))"
_TEKKEN = (
    rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*"
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_GPT4O = (
    rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+{_CONTRACTIONS}?|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*{_CONTRACTIONS}?"
    r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_DIGIT = r"\p{N}"
# For files that name no pre-tokenizer.
_DEFAULT = (r"[\p{P}\$\+<=>\^~\|]+", _GPT2, r"\p{N}+", r"[0-9][0-9][0-9]")

# `tokenizer.ggml.pre` -> patterns applied one after the other.
PRE_TOKENIZERS: dict[str, tuple[str, ...]] = {
    "default": _DEFAULT,
    **dict.fromkeys(("gpt-2", "phi-2", "jina-es", "jina-de", "gigachat", "mellum", "a.x-4.0", "exaone4"), (_GPT2,)),
    **dict.fromkeys(("mpt", "olmo", "jais", "trillion", "granite-docling"), (_GPT2,)),
    **dict.fromkeys(
        ("smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b"), (_DIGIT, _GPT2)
    ),
    **dict.fromkeys(("llama-bpe", "llama3", "llama-v3", "falcon3", "pixtral", "midm-2.0", "lfm2"), (_LLAMA3,)),
    **dict.fromkeys(("smaug-bpe", "dbrx"), (_LLAMA3,)),
    **dict.fromkeys(("qwen2", "deepseek-r1-qwen", "kormo", "megrez", "stablelm2", "hunyuan", "solar-open"), (_QWEN2,)),
    "tekken": (_TEKKEN,),
    **dict.fromkeys(("gpt-4o", "llama4", "kanana2"), (_GPT4O,)),
}
# A whole word that is a token is taken before any merge (`ignore_merges` in llama-vocab.cpp).
_IGNORING_MERGES = frozenset({"llama-bpe", "llama3", "llama-v3", "falcon3", "pixtral", "midm-2.0", "lfm2", "tekken"})


def _byte_level(add_prefix_space: bool = False) -> dict[str, Any]:
    return {"type": "ByteLevel", "add_prefix_space": add_prefix_space, "trim_offsets": True, "use_regex": False}


def _pre_tokenizer(patterns: tuple[str, ...]) -> dict[str, Any]:
    splits = [
        {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}
        for pattern in patterns
    ]
    return {"type": "Sequence", "pretokenizers": [*splits, _byte_level()]}


def byte_alphabet() -> set[str]:
    """The 256 characters that byte-level BPE writes bytes as (bytes_to_unicode in OpenAI's GPT-2 encoder.py)."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    return {chr(code) for code in printable} | {chr(256 + i) for i in range(256 - len(printable))}


def bpe_tokenizer(header: GgufHeader, vocabulary: Vocabulary) -> TokenizerJson:
    """Raises InputError, naming it, for a pre-tokenizer that isn't in the table."""
    patterns = PRE_TOKENIZERS.get(vocabulary.pre)
    if patterns is None:
        raise InputError(
            f"{header.path}: pre-tokenizer {described(vocabulary.pre)} is not supported",
            f"supported are: {', '.join(sorted(PRE_TOKENIZERS))}",
        )
    alphabet = byte_alphabet()
    # Converters fill a vocabulary up with unused tokens; added tokens belong to the model only if text can spell them.
    vocab = {
        text: number
        for number, text in enumerate(vocabulary.tokens)
        if vocabulary.types[number] != UNUSED
        and (vocabulary.types[number] not in (CONTROL, USER_DEFINED) or set(text) <= alphabet)
    }
    framing = vocabulary.framing(token_id(header, "eos"))
    post_processor = _byte_level()
    if framing is not None:
        post_processor = {"type": "Sequence", "processors": [_byte_level(), framing]}
    frame = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": vocabulary.added_tokens(CONTROL, USER_DEFINED),
        "normalizer": None,
        "pre_tokenizer": _pre_tokenizer(patterns),
        "post_processor": post_processor,
        "decoder": _byte_level(add_prefix_space=True),
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": vocabulary.pre in _IGNORING_MERGES,
        },
    }
    return TokenizerJson(frame, vocab.items(), map(_parts, vocabulary.merges))


def _parts(merge: str) -> tuple[str, str]:
    left, _, right = merge.partition(" ")
    return left, right
