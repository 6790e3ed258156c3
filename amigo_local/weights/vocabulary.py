"""The tokens of a GGUF with their types, scores and merges, and which of them frame a text."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from typing import Any

import msgspec

from amigo_local.domain.errors import InputError
from amigo_local.weights.checkpoint_config import token_id
from amigo_local.weights.gguf_header import GgufHeader

# enum llama_token_type in llama.h
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6
SPACE = "\u2581"  # sentencepiece's spelling of a space
# Byte-level pre-tokenizers for which llama.cpp adds BOS unless the file says otherwise (llama-vocab.cpp).
_ADDING_BOS = frozenset(
    {"llama3", "llama-v3", "llama-bpe", "falcon3", "falcon-h1", "pixtral", "midm-2.0", "lfm2", "tekken"}
)
# What llama.cpp takes for the end of an answer, and for control tokens, whatever type the file gives them
# (special_eog_ids in llama-vocab.cpp).
END_TEXTS = frozenset(
    {
        *("</s>", "<eos>", "<EOT>", "_<EOT>", "[EOT]", "[EOS]", "<turn|>", "<end_of_turn>", "<end_of_utterance>"),
        *("<|im_end|>", "<|eot_id|>", "<|eom_id|>", "<|end|>", "<|endoftext|>", "<|end_of_text|>", "<|return|>"),
        *("<|call|>", "<|calls|>", "<|flush|>", "<|tool_response>", "<｜end▁of▁sentence｜>", "[e~["),
    }
)
# Phi-3's special tokens swallow the spaces after them, but for these; llama.cpp goes by the model's name, too.
_NOT_STRIPPING = frozenset({"<unk>", "<s>", "<|endoftext|>"})


class Vocabulary(msgspec.Struct, frozen=True, kw_only=True):
    """Lists are indexed by token id and have one entry per row of the embedding, or fewer.

    Kept compact: as Python objects the numbers of 262144 tokens would take 15 MB.
    """

    model: str
    """`gpt2` is byte-level BPE, `llama` sentencepiece."""
    pre: str
    tokens: list[str]
    types: bytes
    scores: array[float]
    merges: Sequence[Any]
    """Texts `left right`."""
    bos: int | None
    adds_bos: bool
    adds_eos: bool
    strips_right: bool
    """Whether special tokens take the spaces after them."""

    def ids(self, *kinds: int) -> list[int]:
        """Of the tokens of these types, in order."""
        return [number for number, kind in enumerate(self.types) if kind in kinds]

    def added_tokens(self, *kinds: int) -> list[dict[str, Any]]:
        """tokenizer.json's `added_tokens`: what is cut out of the text before anything else."""
        return [
            {
                "id": number,
                "content": text,
                "single_word": False,
                "lstrip": False,
                "rstrip": self.strips_right and text not in _NOT_STRIPPING,
                # Space runs are looked for in the normalized text, where spaces are already spelled so.
                "normalized": bool(text) and not text.strip(SPACE),
                "special": self.types[number] != USER_DEFINED,
            }
            for number in self.ids(*kinds)
            for text in (self.tokens[number],)
        ]

    def framing(self, eos: int | None) -> dict[str, Any] | None:
        """tokenizer.json's post-processor that adds BOS and EOS; None when neither is added."""
        first = self.bos if self.adds_bos else None
        last = eos if self.adds_eos else None
        if first is None and last is None:
            return None

        def special(number: int | None, kind: int) -> list[dict[str, Any]]:
            return [] if number is None else [{"SpecialToken": {"id": self.tokens[number], "type_id": kind}}]

        def sequence(name: str, kind: int) -> list[dict[str, Any]]:
            return [*special(first, kind), {"Sequence": {"id": name, "type_id": kind}}, *special(last, kind)]

        used = {self.tokens[number]: number for number in (first, last) if number is not None}
        return {
            "type": "TemplateProcessing",
            "single": sequence("A", 0),
            "pair": sequence("A", 0) + sequence("B", 1),
            "special_tokens": {text: {"id": text, "ids": [n], "tokens": [text]} for text, n in used.items()},
        }


def read_vocabulary(header: GgufHeader) -> Vocabulary:
    """Raises InputError when a list is missing, its length doesn't match, or a token's type is unknown."""
    stored = header.list_of(str, "tokenizer.ggml.tokens")
    count = len(stored)
    if not count:
        raise InputError(f"{header.path}: holds no tokenizer", "take a GGUF with tokenizer.ggml.tokens")
    kept = min(count, header.tensor("token_embd.weight").dimensions[-1])
    numbers: dict[str, Sequence[Any]] = {}
    for key, default in (("token_type", NORMAL), ("scores", 0.0)):
        numbers[key] = header.list_of(type(default), f"tokenizer.ggml.{key}") or (default,) * count
        if len(numbers[key]) != count:
            raise InputError(
                f"{header.path}: {count} tokens but {len(numbers[key])} entries in tokenizer.ggml.{key}",
                "download or export the file again",
            )
    types = list(numbers["token_type"][:kept])
    if not all(0 <= kind <= BYTE for kind in types):
        raise InputError(
            f"{header.path}: tokenizer.ggml.token_type holds other numbers than 0 to {BYTE}",
            "download or export the file again",
        )
    model = str(header.metadata.get("tokenizer.ggml.model", "none"))
    pre = str(header.metadata.get("tokenizer.ggml.pre", "default"))
    adds_bos = header.metadata.get("tokenizer.ggml.add_bos_token", model == "llama" or pre in _ADDING_BOS)
    tokens = list(stored[:kept])
    if model == "llama":
        # The converter spells user-defined space runs with plain spaces, sentencepiece and transformers don't.
        tokens = [
            text.replace(" ", SPACE) if " " in text and (kind == USER_DEFINED or not text.strip(" ")) else text
            for text, kind in zip(tokens, types, strict=True)
        ]
    for number, text in enumerate(tokens):
        if text in END_TEXTS and types[number] == NORMAL:
            types[number] = CONTROL
    name = str(header.metadata.get("general.name", "")).lower()
    return Vocabulary(
        model=model,
        pre=pre,
        tokens=tokens,
        types=bytes(types),
        scores=array("f", numbers["scores"][:kept]),
        merges=header.list_of(str, "tokenizer.ggml.merges") if model == "gpt2" else (),
        bos=token_id(header, "bos"),
        adds_bos=bool(adds_bos),
        adds_eos=bool(header.metadata.get("tokenizer.ggml.add_eos_token", False)),
        strips_right="phi-3" in name or "phi3" in name,
    )
