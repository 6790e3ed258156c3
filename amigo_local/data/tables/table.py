"""Table: one file of rows, wherever it lies, and finding those that a path or a pattern names."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import BinaryIO, Literal

from amigo_local.domain.data_source import FileSource, JsonlSource, JsonSource
from amigo_local.domain.errors import InputError

Kind = Literal["jsonl", "json", "parquet"]
_ENDINGS: tuple[tuple[str, Kind], ...] = (
    (".jsonl", "jsonl"),
    (".ndjson", "jsonl"),
    (".json", "json"),
    (".parquet", "parquet"),
)
_NAMES_SHOWN = 10
_PATTERN_SIGNS = "*?["


@dataclass(frozen=True)
class Table:
    name: str
    """As places are told: the file's name, or its path in a set of the hub."""
    kind: Kind
    size_bytes: int
    open: Callable[[], BinaryIO]
    """From its beginning, each time."""
    path: str = ""
    """As errors tell it; empty: as `name`."""

    @property
    def shown(self) -> str:
        return self.path or self.name

    @property
    def is_compressed(self) -> bool:
        return self.name.lower().endswith(".gz")

    @property
    def unit(self) -> str:
        """What its numbers count."""
        return "row" if self.kind == "parquet" else "line"

    def place(self, number: int) -> str:
        return f"{self.name} row {number}" if self.kind == "parquet" else f"{self.name}:{number}"


def tables_on_disk(pattern: str, kind: Kind) -> tuple[Table, ...]:
    """The files that the pattern names, sorted. Raises InputError, with what is there instead, when there are none."""
    return tuple(_on_disk(path, kind) for path in _paths(pattern, kind))


def tables_of(source: FileSource) -> tuple[Table, ...]:
    """The files of a source. Raises InputError as `tables_on_disk` does."""
    kind: Kind = "jsonl" if isinstance(source, JsonlSource) else "json" if isinstance(source, JsonSource) else "parquet"
    return tables_on_disk(str(getattr(source, kind)), kind)


def _on_disk(path: Path, kind: Kind) -> Table:
    def opened() -> BinaryIO:
        try:
            return path.open("rb")
        except OSError as error:
            raise InputError(
                f"{path}: can't be read ({error.strerror or error})", "check the path and its permissions"
            ) from error

    try:
        size = path.stat().st_size
    except OSError as error:
        raise InputError(f"{path}: can't be read ({error.strerror or error})", "check the path") from error
    return Table(path.name, kind, size, opened, str(path))


def _paths(pattern: str, kind: Kind) -> list[Path]:
    literal = Path(pattern).expanduser()
    if literal.is_file():  # also a name that happens to hold a bracket
        return [literal]
    if literal.is_dir():
        raise InputError(
            f"{literal}: is a folder ({listing(_names_in(literal))})", f"name its files: {kind}: {literal}/*.{kind}"
        )
    if not any(sign in pattern for sign in _PATTERN_SIGNS):
        folder = literal.parent
        inside = f" ({folder.name or folder} holds {listing(_names_in(folder))})" if folder.is_dir() else ""
        raise InputError(f"{literal}: no such file{inside}", f"give the path of the file as the source's {kind}")
    folder = _above_pattern(literal)
    found = sorted(path for path in folder.glob(str(literal.relative_to(folder))) if path.is_file())
    if not found:
        there = f"{folder} holds {listing(_names_in(folder))}" if folder.is_dir() else f"there is no folder {folder}"
        raise InputError(f"{literal}: no file matches ({there})", f"correct the pattern of the source's {kind}")
    return found


def _above_pattern(pattern: Path) -> Path:
    """The folder that the pattern begins to choose in."""
    for parent in reversed(pattern.parents):
        if any(sign in parent.name for sign in _PATTERN_SIGNS):
            return parent.parent
    return pattern.parent


def _names_in(folder: Path) -> list[str]:
    try:
        return sorted(path.name + "/" * path.is_dir() for path in folder.iterdir())
    except OSError:
        return []


def listing(names: list[str]) -> str:
    """`a.json, b.json and 7 more`."""
    if not names:
        return "nothing"
    more = len(names) - _NAMES_SHOWN
    return ", ".join(names[:_NAMES_SHOWN]) + (f" and {more} more" if more > 0 else "")


def kind_of(path: str) -> Kind | None:
    """What a file is by its ending, also compressed (`.gz`); None for what can't be read."""
    name = PurePosixPath(path).name.lower()
    packed = name.endswith(".gz")
    bare = name.removesuffix(".gz")
    kind = next((kind for ending, kind in _ENDINGS if bare.endswith(ending)), None)
    return None if packed and kind == "parquet" else kind
