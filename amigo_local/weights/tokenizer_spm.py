"""Sentencepiece: a GGUF's `llama` tokenizer as tokenizer.json and as tokenizer.model."""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Any

from amigo_local.weights.checkpoint_config import token_id
from amigo_local.weights.gguf_header import GgufHeader
from amigo_local.weights.vocabulary import BYTE, NORMAL, SPACE, UNKNOWN, UNUSED, USER_DEFINED, Vocabulary

_UNKNOWN_BY_DEFAULT = 0  # llama.cpp's default id for <unk> in this tokenizer


def _is_gemma(header: GgufHeader) -> bool:
    return header.architecture.startswith("gemma")


def _adds_prefix(header: GgufHeader) -> bool:
    return bool(header.metadata.get("tokenizer.ggml.add_space_prefix", not _is_gemma(header)))


def _unknown(header: GgufHeader) -> int:
    number = token_id(header, "unknown")
    return _UNKNOWN_BY_DEFAULT if number is None else number


def merges(vocab: dict[str, int], rank: Callable[[str], float]) -> list[list[str]]:
    """Every way to join two pieces into a third, best rank of the result first, then by the ids of the parts.

    The rule of transformers' SentencePieceExtractor, so that BPE with these merges equals sentencepiece's greedy
    joining by score.
    """
    found: list[tuple[float, int, str, str]] = []
    for piece in vocab:
        splits = [(piece[:cut], piece[cut:]) for cut in range(1, len(piece))]
        known = [(left, right) for left, right in splits if left in vocab and right in vocab]
        known.sort(key=lambda pair: (vocab[pair[0]], vocab[pair[1]]))
        order = rank(piece)
        found += [(order, place, left, right) for place, (left, right) in enumerate(known)]
    found.sort(key=lambda entry: entry[:2])
    return [[left, right] for _, _, left, right in found]


def spm_tokenizer(header: GgufHeader, vocabulary: Vocabulary) -> dict[str, Any]:
    """tokenizer.json: BPE over ▁-spelled text with bytes as the fallback."""
    tokens, types = vocabulary.tokens, vocabulary.types
    vocab = {text: number for number, text in enumerate(tokens) if types[number] != UNUSED}
    joinable = {text: number for text, number in vocab.items() if types[number] != BYTE}
    # Gemma's scores run with its ids; elsewhere the score decides.
    rank: Callable[[str], float] = vocab.__getitem__
    if not _is_gemma(header):
        rank = lambda piece: -vocabulary.scores[vocab[piece]]  # noqa: E731 - one of two ranks
    to_spaces = {"type": "Replace", "pattern": {"String": " "}, "content": SPACE}
    prefix = _adds_prefix(header)
    decoders: list[dict[str, Any]] = [
        {"type": "Replace", "pattern": {"String": SPACE}, "content": " "},
        {"type": "ByteFallback"},
        {"type": "Fuse"},
    ]
    if prefix:
        decoders.append({"type": "Strip", "content": " ", "start": 1, "stop": 0})
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": vocabulary.added_tokens(),
        "normalizer": {"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": SPACE}, to_spaces]}
        if prefix
        else to_spaces,
        "pre_tokenizer": None,
        "post_processor": vocabulary.framing(token_id(header, "eos")),
        "decoder": {"type": "Sequence", "decoders": decoders},
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": tokens[_unknown(header)],
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": True,
            "byte_fallback": True,
            "ignore_merges": False,
            "vocab": vocab,
            "merges": merges(joinable, rank),
        },
    }


def _varint(value: int) -> bytes:
    value &= (1 << 64) - 1  # protobuf writes negative int32 as 64 bits
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    return bytes(out) + bytes([value])


def _field(number: int, value: int) -> bytes:
    return _varint(number << 3) + _varint(value)


def _message(number: int, body: bytes) -> bytes:
    return _varint(number << 3 | 2) + _varint(len(body)) + body


def spm_model_file(header: GgufHeader, vocabulary: Vocabulary) -> bytes:
    """tokenizer.model: sentencepiece_model.proto with pieces, trainer spec and normalizer spec."""
    unknown = _unknown(header)
    pieces = bytearray()
    count = 0
    for number, (text, kind) in enumerate(zip(vocabulary.tokens, vocabulary.types, strict=True)):
        if kind == UNUSED and text.startswith("[PAD"):
            break  # the converter's filling, which the model file never had
        kind = UNKNOWN if number == unknown else kind
        spelled = text.replace(" ", SPACE) if kind == USER_DEFINED else text
        body = _message(1, spelled.encode()) + b"\x15" + struct.pack("<f", vocabulary.scores[number])
        pieces += _message(1, body if kind == NORMAL else body + _field(3, kind))
        count += 1

    def stated(which: str) -> int:
        number = token_id(header, which)
        return -1 if number is None else number

    bpe, byte_fallback = _field(3, 2), _field(35, 1)
    ids = _field(40, unknown) + _field(41, stated("bos")) + _field(42, stated("eos")) + _field(43, stated("padding"))
    trainer = bpe + _field(4, count) + byte_fallback + ids
    dummy_prefix, keep_spaces, escape_spaces = _field(3, int(_adds_prefix(header))), _field(4, 0), _field(5, 1)
    normalizer = _message(1, b"identity") + dummy_prefix + keep_spaces + escape_spaces
    return bytes(pieces) + _message(2, trainer) + _message(3, normalizer)
