"""How a GGUF architecture maps to a checkpoint: what each file in `architectures/` states."""

from __future__ import annotations

import importlib
import pkgutil
import re
from collections.abc import Callable, Iterator
from typing import Any

import msgspec

from amigo_local.domain.errors import InputError
from amigo_local.weights import architectures
from amigo_local.weights.gguf_header import GgufHeader, TensorInfo

_BLOCK = re.compile(r"blk\.(\d+)\.([a-z0-9_]+)\.(weight|bias)")
_TOP = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}


def _unchanged(header: GgufHeader) -> GgufHeader:
    return header


class Architecture(msgspec.Struct, frozen=True, kw_only=True):
    """One family. A module `architectures/<general.architecture>.py` holds it as ARCHITECTURE."""

    blocks: dict[str, str]
    """GGUF part of a block (`attn_q`) -> its module in a decoder layer (`self_attn.q_proj`)."""
    config: Callable[[GgufHeader], dict[str, Any]]
    """config.json without what every family shares."""
    biased: frozenset[str] = frozenset()
    """Parts that always have a bias."""
    bias_switches: tuple[frozenset[str], ...] = ()
    """Parts that have a bias in every layer, all of a set or none of it: each set is one switch of the config."""
    permuted: dict[str, str] = {}
    """Parts whose rows llama.cpp stores interleaved for its rotary kernel -> the metadata key of their heads."""
    overflows_float16: bool = False
    """Whether activations leave float16's range, so that a checkpoint in it would be computed to infinity."""
    norm_offset: float = 0.0
    """What the GGUF's norm weights hold more than the checkpoint's."""
    recomputed: frozenset[str] = frozenset()
    """Tensors that the config describes, so that the checkpoint doesn't carry them."""
    skipped_prefixes: tuple[str, ...] = ()
    """Tensors that aren't part of the language model: a vision tower in the same file."""
    normalize: Callable[[GgufHeader], GgufHeader] = _unchanged
    """Mends metadata that other writers of this architecture leave out or spell differently."""

    def is_skipped(self, name: str) -> bool:
        return name.startswith(self.skipped_prefixes) if self.skipped_prefixes else False

    def checkpoint_name(self, name: str) -> str | None:
        """`blk.0.attn_q.weight` -> `model.layers.0.self_attn.q_proj.weight`; None: not one of this family's."""
        if name in _TOP:
            return _TOP[name]
        match = _BLOCK.fullmatch(name)
        if match is None or match[2] not in self.blocks:
            return None
        if match[3] == "bias" and match[2] not in self.biased.union(*self.bias_switches):
            return None
        return f"model.layers.{match[1]}.{self.blocks[match[2]]}.{match[3]}"

    def heads(self, header: GgufHeader, name: str) -> int | None:
        """How many heads the rows of this tensor are interleaved in; None: rows are as in the checkpoint."""
        match = _BLOCK.fullmatch(name)
        key = self.permuted.get(match[2]) if match else None
        if key is None:
            return None
        return header.count(key, header.count("attention.head_count"))  # base_config refuses layers that differ

    def required(self, header: GgufHeader) -> Iterator[str]:
        """Names of the tensors in whose place transformers would put random weights if they were missing."""
        yield from ("token_embd.weight", "output_norm.weight")
        names = header.tensor_names
        on = [parts for parts in self.bias_switches if any(f"blk.0.{part}.bias" in names for part in parts)]
        biased = self.biased.union(*on)
        for layer in range(header.layers):
            yield from (f"blk.{layer}.{part}.weight" for part in self.blocks)
            yield from (f"blk.{layer}.{part}.bias" for part in sorted(biased))

    def norm_shift(self, name: str) -> float:
        return self.norm_offset if name.endswith("norm.weight") else 0.0


class MappedTensor(msgspec.Struct, frozen=True):
    """A tensor of the GGUF and its place in the checkpoint."""

    source: TensorInfo
    name: str
    """In the checkpoint."""
    heads: int | None
    shift: float
    """To be subtracted from the GGUF's values."""


def supported() -> tuple[str, ...]:
    """Names of the files in `architectures/`, which are the values of `general.architecture`."""
    return tuple(sorted(module.name for module in pkgutil.iter_modules(architectures.__path__)))


def architecture_of(header: GgufHeader) -> Architecture:
    """Raises InputError that lists the supported ones."""
    name = header.architecture
    if name not in supported():
        raise InputError(
            f"{header.path}: architecture {name!r} is not supported",
            f"supported are: {', '.join(supported())}",
        )
    family: Architecture = importlib.import_module(f"{architectures.__name__}.{name}").ARCHITECTURE
    return family


def map_tensors(header: GgufHeader, family: Architecture) -> tuple[list[MappedTensor], list[str]]:
    """(the checkpoint's tensors in file order, names of the skipped ones).

    Raises InputError for a tensor that the family doesn't know, and for one that it needs and the file lacks.
    """
    mapped: list[MappedTensor] = []
    skipped: list[str] = []
    expected = set(family.required(header))
    for tensor in header.tensors:
        name = family.checkpoint_name(tensor.name)
        if name is not None and (tensor.name in expected or tensor.name == "output.weight"):
            heads = family.heads(header, tensor.name)
            if heads and tensor.shape[0] % (2 * heads):
                raise InputError(
                    f"{header.path}: tensor {tensor.name} has {tensor.shape[0]} rows, no pairs for {heads} heads",
                    "download or export the file again",
                )
            mapped.append(MappedTensor(tensor, name, heads, family.norm_shift(tensor.name)))
        elif family.is_skipped(tensor.name):
            skipped.append(tensor.name)
        elif tensor.name not in family.recomputed:
            raise InputError(
                f"{header.path}: tensor {tensor.name} is unknown for architecture {header.architecture}",
                "this variant of the architecture isn't supported; export works from a plain one",
            )
    missing = sorted(expected - header.tensor_names)
    if missing:
        raise InputError(
            f"{header.path}: {len(missing)} tensors of architecture {header.architecture} are missing, "
            f"first {missing[0]}",
            "download or export the file again; other variants of the architecture aren't supported",
        )
    return mapped, skipped
