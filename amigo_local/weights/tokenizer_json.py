"""tokenizer.json, written piece by piece: as one structure a vocabulary of 262144 tokens would take 200 MB."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

import msgspec

_Item = TypeVar("_Item")
_BATCH = 8192


class TokenizerJson(msgspec.Struct, frozen=True):
    """What the Hugging Face tokenizers library loads; its model is a BPE."""

    frame: dict[str, Any]
    """Everything but the two long lists. `model` comes last."""
    vocab: Iterable[tuple[str, int]]
    merges: Iterable[tuple[str, str]]

    def write(self, path: Path) -> None:
        """The UTF-8 of the whole structure in one line, with vocab and merges as the model's last members."""
        with path.open("wb") as file:
            file.write(msgspec.json.encode(self.frame).removesuffix(b"}}") + b',"vocab":{')
            _write_members(file.write, (dict(batch) for batch in _batches(self.vocab)))
            file.write(b'},"merges":[')
            _write_members(file.write, _batches(self.merges))
            file.write(b"]}}")


def _batches(items: Iterable[_Item]) -> Iterator[list[_Item]]:
    iterator = iter(items)
    while batch := list(islice(iterator, _BATCH)):
        yield batch


def _write_members(write: Callable[[bytes], object], batches: Iterable[Any]) -> None:
    """The members of one object or array, without its brackets."""
    separator = b""
    for batch in batches:
        write(separator + msgspec.json.encode(batch)[1:-1])
        separator = b","
