"""ModelRef: how a person names a model, wherever it lives."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from typing import Literal

import msgspec

from amigo_local.domain.errors import InputError

RefKind = Literal["ollama", "gguf", "checkpoint", "hf", "run"]

# model/name.go in Ollama: host, namespace, model and tag are each word characters, dots, dashes.
_TAG = re.compile(r"(?:[\w.-]+(?::\d+)?/)?(?:[\w.-]+/)?[A-Za-z0-9_][\w.-]*(?::[\w][\w.-]*)?")
_HF = re.compile(r"[\w.-]+/[\w.-]+(?:@[\w./-]+)?")

FORMS = "an Ollama tag, ollama:TAG, path/to.gguf, a checkpoint directory, hf:org/name or run:ID"


class ModelRef(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One reference: `value` is a tag, an absolute path, a hub repository or a run id."""

    kind: RefKind
    value: str

    def __str__(self) -> str:
        return self.value if self.kind in ("gguf", "checkpoint") else f"{self.kind}:{self.value}"


def parse_model_ref(text: str, is_directory: Callable[[str], bool] = os.path.isdir) -> ModelRef:
    """Reads a REF; paths become absolute. Raises InputError when it has none of the forms.

    A bare name is an Ollama tag unless it ends in `.gguf`, looks like a path, or is a directory
    that holds a `config.json`.
    """
    text = text.strip()
    scheme, separator, rest = text.partition(":")
    if separator and scheme == "ollama" and _TAG.fullmatch(rest):
        return ModelRef("ollama", rest)
    if separator and scheme == "hf" and _HF.fullmatch(rest):
        return ModelRef("hf", rest)
    if separator and scheme == "run" and re.fullmatch(r"[\w.-]+", rest):
        return ModelRef("run", rest)
    path = os.path.abspath(os.path.expanduser(text)) if text else ""  # noqa: PTH100, PTH111  # keeps links as given
    if text.lower().endswith(".gguf"):
        return ModelRef("gguf", path)
    pathlike = text.startswith((".", "/", "~", "\\")) or re.match(r"[A-Za-z]:[\\/]", text)
    if text and (pathlike or (is_directory(path) and os.path.exists(f"{path}/config.json"))):
        return ModelRef("checkpoint" if is_directory(path) else "gguf", path)
    if _TAG.fullmatch(text) and scheme not in ("hf", "run", "ollama"):
        return ModelRef("ollama", text)
    raise InputError(f"{text!r} names no model", f"give {FORMS}")
