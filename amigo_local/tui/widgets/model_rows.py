"""ModelRow: one line of the table that `models` answers with, and what can be done with it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import msgspec

from amigo_local.domain.artifact import Figure
from amigo_local.domain.events import Column, Table

Action = Literal["unpack", "register", "remove", "compare", "refine"]

_APPLIES: dict[Action, tuple[str, ...]] = {
    "unpack": ("Ollama", "library", "gguf"),
    "register": ("gguf",),
    "remove": ("Ollama", "remote", "library", "gguf", "checkpoint", "adapter"),
    "compare": ("Ollama", "remote", "library", "gguf"),
    "refine": ("Ollama", "library", "gguf", "checkpoint"),
}
"""Action -> where a model must be for it: weights to read, a file to name, somebody to serve it."""
_SHOWN = (
    Column("model"),
    Column("where"),
    Column("size", "bytes"),
    Column("quantization"),
    Column("context", "count"),
)
_ROOMY = (*_SHOWN[:3], Column("architecture"), *_SHOWN[3:])


class ModelRow(msgspec.Struct, frozen=True, array_like=True):
    """A field for each column of `models`, in their order."""

    name: str
    where: str
    size_bytes: Figure
    architecture: Figure
    quantization: Figure
    context: Figure
    made_from: Figure
    ref: str
    """What every verb takes."""

    def can(self, action: Action) -> bool:
        return (self.where in _APPLIES[action] and self.architecture != "missing or damaged") or action == "remove"

    @property
    def is_tag(self) -> bool:
        return self.where in ("Ollama", "remote", "library")

    def weights_ref(self, serves_library: bool) -> str:
        """The REF to read its weights by: our library's tags are names only while no Ollama server answers."""
        return str(self.made_from) if self.where == "library" and not serves_library else self.ref


def model_rows(table: Table) -> list[ModelRow]:
    """The rows of the table that `models` answers with."""
    return msgspec.convert(table.rows, list[ModelRow])


def overview(rows: Sequence[ModelRow], *, roomy: bool) -> Table:
    """What a list shows of them, each known by its ref in the first column; the rest is for the details."""
    columns = _ROOMY if roomy else _SHOWN
    values = {
        "model": lambda row: row.ref,
        "where": lambda row: row.where,
        "size": lambda row: row.size_bytes,
        "architecture": lambda row: row.architecture,
        "quantization": lambda row: row.quantization,
        "context": lambda row: row.context,
    }
    return Table("Models", columns, tuple(tuple(values[column.name](row) for column in columns) for row in rows))


def short_name(ref: str, artifacts_dir: Path) -> str:
    """A tag without its scheme; of a path the name first, then the folder that tells it from others."""
    if ref.startswith("ollama:"):
        return ref.removeprefix("ollama:")
    path = Path(ref)
    if not path.is_absolute():
        return ref
    try:
        own = path.relative_to(artifacts_dir).parts
    except ValueError:
        own = (str(path.parent), path.name)
    return " · ".join(reversed(own))
