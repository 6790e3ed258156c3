"""Reading: what a source is given to read with, where it says what it left out, and what it says about itself."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import msgspec

from amigo_local.domain.data_source import HubSource
from amigo_local.domain.errors import InputError
from amigo_local.domain.events import Emit
from amigo_local.domain.verdict import Judge

NAMED_SKIPS = 5
"""So many places of a reason are remembered, to be shown."""


class HubAbsent(InputError):
    """Neither a hub nor its cache can be asked: a source that is optional is then gone on without."""


class RemoteFile(Protocol):
    """One file of a data set on a hub, at one commit."""

    @property
    def path(self) -> str: ...
    @property
    def size_bytes(self) -> int: ...

    def local(self) -> Path:
        """Where it lies whole on this disk; fetched when it doesn't yet. Raises InputError as the hub's client does."""

    def part(self, start: int, stop: int) -> bytes:
        """Bytes [start, stop), without fetching the whole."""


class RemoteSet(Protocol):
    """A data set on a hub at one commit."""

    @property
    def revision(self) -> str:
        """The commit's 40 hex digits."""

    @property
    def license(self) -> str:
        """Of the whole set, as its card says; empty where it doesn't."""

    @property
    def gated(self) -> bool: ...

    @property
    def files(self) -> Sequence[RemoteFile]:
        """Those that the source's pattern names, sorted by path; only those may be read."""


OpenHub = Callable[[HubSource], RemoteSet]
"""Finds a set in the hub's cache or on the hub. Raises HubAbsent (an InputError) where neither has it."""


@dataclass
class Reading:
    """Handed to a source's `read`. `judge`, `open_hub` and `replayed` are None where the caller has none to give."""

    emit: Emit
    judge: Judge | None = None
    open_hub: OpenHub | None = None
    home: Path | None = None
    """Home folder, where votes lie."""
    folders: Mapping[str, Path] = field(default_factory=dict)
    """What earlier steps made for a source: candidates by the source's digest, replayed sets by how they are named."""
    seed: int = 0
    rows: int = 0
    """Rows, functions or commits looked at so far, kept or not."""
    skipped: Counter[str] = field(default_factory=Counter)
    """Reason -> how many were left out."""
    places: dict[str, list[str]] = field(default_factory=dict)
    """Reason -> the first few places, such as `rows.jsonl:17`."""

    def skip(self, reason: str, where: str = "") -> None:
        """Counts what is left out, and remembers where, if that is of use to a person."""
        self.skipped[reason] += 1
        if where and len(known := self.places.setdefault(reason, [])) < NAMED_SKIPS:
            shown = where.encode("utf-8", "replace").decode()  # a file's name needn't be UTF-8
            if shown not in known:  # a folder may be read for docstrings, and again for contexts
                known.append(shown)


class SourceFacts(msgspec.Struct, frozen=True, kw_only=True):
    """What `data check` tells of one source."""

    reachable: bool
    problem: str = ""
    """Why it can't be read, or what couldn't be checked."""
    fix: str = ""
    """A substitute, or a command."""
    revision: str = ""
    license: str = ""
    size_bytes: int | None = None
    rows: int | None = None
    """None: not known without reading it all."""
    columns: tuple[str, ...] = ()
    used: str = ""
    """What of it becomes what: `instruction → request, response → answer`."""
