"""The tokens of a GGUF with their types, scores and merges, and which of them frame a text."""

from __future__ import annotations

from typing import Any

import msgspec

from amigo_local.domain.errors import InputError
from amigo_local.weights.checkpoint_config import token_id
from amigo_local.weights.gguf_header import GgufHeader

# enum llama_token_type in llama.h
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6
SPACE = "\u2581"  # sentencepiece's spelling of a space
# Byte-level pre-tokenizers for which llama.cpp adds BOS unless the file says otherwise (llama-vocab.cpp).
_ADDING_BOS = frozenset({"llama3", "llama-v3", "llama-bpe", "falcon3", "tekken"})


class Vocabulary(msgspec.Struct, frozen=True, kw_only=True):
    """Lists are indexed by token id and have one entry per row of the embedding, or fewer."""

    model: str
    """`gpt2` is byte-level BPE, `llama` sentencepiece."""
    pre: str
    tokens: list[str]
    types: list[int]
    scores: list[float]
    merges: list[str]
    bos: int | None
    adds_bos: bool
    adds_eos: bool

    def added_tokens(self) -> list[dict[str, Any]]:
        """tokenizer.json's `added_tokens`: what is cut out of the text before anything else."""
        return [
            {
                "id": number,
                "content": text,
                "single_word": False,
                "lstrip": False,
                "rstrip": False,
                # Space runs are looked for in the normalized text, where spaces are already spelled so.
                "normalized": bool(text) and not text.strip(SPACE),
                "special": self.types[number] == CONTROL,
            }
            for number, text in enumerate(self.tokens)
            if self.types[number] in (CONTROL, USER_DEFINED)
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
    """Raises InputError when a list is missing or its length doesn't match."""
    rows = header.tensor("token_embd.weight").dimensions[-1]
    tokens = [str(text) for text in header.array("tokenizer.ggml.tokens")]
    if not tokens:
        raise InputError(f"{header.path}: holds no tokenizer", "take a GGUF with tokenizer.ggml.tokens")
    lists: dict[str, tuple[Any, ...]] = {}
    for key, default in (("token_type", NORMAL), ("scores", 0.0)):
        lists[key] = header.array(f"tokenizer.ggml.{key}") or (default,) * len(tokens)
        if len(lists[key]) != len(tokens):
            raise InputError(
                f"{header.path}: {len(tokens)} tokens but {len(lists[key])} entries in tokenizer.ggml.{key}",
                "download or export the file again",
            )
    model = str(header.metadata.get("tokenizer.ggml.model", "none"))
    pre = str(header.metadata.get("tokenizer.ggml.pre", "default"))
    adds_bos = header.metadata.get("tokenizer.ggml.add_bos_token", model == "llama" or pre in _ADDING_BOS)
    types = list(lists["token_type"][:rows])
    tokens = tokens[:rows]
    if model == "llama":
        # The converter spells user-defined space runs with plain spaces, sentencepiece and transformers don't.
        tokens = [
            text.replace(" ", SPACE) if types[i] == USER_DEFINED or (text and not text.strip(" ")) else text
            for i, text in enumerate(tokens)
        ]
    return Vocabulary(
        model=model,
        pre=pre,
        tokens=tokens,
        types=types,
        scores=list(lists["scores"][:rows]),
        merges=[str(merge) for merge in header.array("tokenizer.ggml.merges")],
        bos=token_id(header, "bos"),
        adds_bos=bool(adds_bos),
        adds_eos=bool(header.metadata.get("tokenizer.ggml.add_eos_token", False)),
    )
