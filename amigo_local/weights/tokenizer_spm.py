"""Sentencepiece: a GGUF's `llama` tokenizer as tokenizer.json and as tokenizer.model."""

from __future__ import annotations

import functools
import struct
from array import array
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from amigo_local.weights.checkpoint_config import token_id
from amigo_local.weights.gguf_header import GgufHeader
from amigo_local.weights.tokenizer_json import TokenizerJson
from amigo_local.weights.vocabulary import BYTE, CONTROL, NORMAL, SPACE, UNKNOWN, UNUSED, USER_DEFINED, Vocabulary

_UNKNOWN_BY_DEFAULT = 0  # llama.cpp's default id for <unk> in this tokenizer
_BATCH = 8192

Ids = npt.NDArray[np.int32]


def _is_gemma(header: GgufHeader) -> bool:
    return header.architecture.startswith("gemma")


def adds_prefix(header: GgufHeader) -> bool:
    """Whether a space is put before the text."""
    return bool(header.metadata.get("tokenizer.ggml.add_space_prefix", not _is_gemma(header)))


def _unknown(header: GgufHeader) -> int:
    number = token_id(header, "unknown")
    return _UNKNOWN_BY_DEFAULT if number is None else number


def merges(vocab: dict[str, int], types: bytes, order: npt.NDArray[Any]) -> tuple[Ids, Ids]:
    """(left, right) ids of every way to join two pieces into a third, the third with the least `order` first.

    `order` is indexed by id; ties go by ids. After generate_merges of transformers' convert_slow_tokenizer.py: BPE with
    these merges equals sentencepiece's greedy joining by score.
    """
    found = array("i")  # whole, left, right, whole, ...
    find, add = vocab.get, found.extend
    for piece, whole in vocab.items():
        for cut in range(1, len(piece)):
            left = find(piece[:cut])
            if left is not None:
                right = find(piece[cut:])
                if right is not None:
                    add((whole, left, right))
    table = np.frombuffer(found, np.int32).reshape(-1, 3)
    table = table[(np.frombuffer(types, np.uint8)[table] != BYTE).all(axis=1)]
    wholes, lefts, rights = table.T
    ranked = np.lexsort((rights, lefts, wholes, order[wholes]))
    return lefts[ranked], rights[ranked]


def _texts(vocabulary: Vocabulary, lefts: Ids, rights: Ids) -> Iterator[tuple[str, str]]:
    tokens = vocabulary.tokens
    for start in range(0, len(lefts), _BATCH):  # whole lists of Python integers would take 40 MB
        pair = lefts[start : start + _BATCH].tolist(), rights[start : start + _BATCH].tolist()
        yield from ((tokens[left], tokens[right]) for left, right in zip(*pair, strict=True))


def spm_tokenizer(header: GgufHeader, vocabulary: Vocabulary) -> TokenizerJson:
    """BPE over ▁-spelled text with bytes as the fallback."""
    tokens, types = vocabulary.tokens, vocabulary.types
    vocab = {text: number for number, text in enumerate(tokens) if types[number] != UNUSED}
    # Gemma's scores run with its ids; elsewhere the score decides.
    order: npt.NDArray[Any] = np.arange(len(tokens), dtype=np.int32)
    if not _is_gemma(header):
        order = -np.frombuffer(vocabulary.scores, np.float32)
    to_spaces = {"type": "Replace", "pattern": {"String": " "}, "content": SPACE}
    prefix = adds_prefix(header)
    decoders: list[dict[str, Any]] = [
        {"type": "Replace", "pattern": {"String": SPACE}, "content": " "},
        {"type": "ByteFallback"},
        {"type": "Fuse"},
    ]
    if prefix:
        decoders.append({"type": "Strip", "content": " ", "start": 1, "stop": 0})
    frame = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": vocabulary.added_tokens(UNKNOWN, CONTROL, USER_DEFINED),
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
        },
    }
    return TokenizerJson(frame, vocab.items(), _texts(vocabulary, *merges(vocab, types, order)))


@functools.lru_cache(4096)
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


def spm_model_file(header: GgufHeader, vocabulary: Vocabulary) -> Iterator[bytes]:
    """tokenizer.model in parts: sentencepiece_model.proto with pieces, trainer spec and normalizer spec."""
    unknown = _unknown(header)
    score = struct.Struct("<Bf").pack  # field 2, 32 bits
    kinds = [_field(3, kind) for kind in range(BYTE + 1)]
    kinds[NORMAL] = b""
    count = 0
    pieces: list[bytes] = []
    for number, (text, kind) in enumerate(zip(vocabulary.tokens, vocabulary.types, strict=True)):
        if kind == UNUSED and text.startswith("[PAD"):
            break  # the converter's filling, which the model file never had
        of_kind = kinds[UNKNOWN if number == unknown else kind]
        pieces.append(_message(1, _message(1, text.encode()) + score(0x15, vocabulary.scores[number]) + of_kind))
        count += 1
        if len(pieces) == _BATCH:
            yield b"".join(pieces)
            pieces.clear()
    yield b"".join(pieces)

    def stated(which: str) -> int:
        number = token_id(header, which)
        return -1 if number is None else number

    bpe, byte_fallback = _field(3, 2), _field(35, 1)
    ids = _field(40, unknown) + _field(41, stated("bos")) + _field(42, stated("eos")) + _field(43, stated("padding"))
    trainer = bpe + _field(4, count) + byte_fallback + ids
    dummy_prefix, keep_spaces, escape_spaces = _field(3, int(adds_prefix(header))), _field(4, 0), _field(5, 1)
    normalizer = _message(1, b"identity") + dummy_prefix + keep_spaces + escape_spaces
    yield _message(2, trainer) + _message(3, normalizer)
