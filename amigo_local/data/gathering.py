"""The first half of `prepare`: every source is read and filtered, and what is left lies in a spool on disk."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from amigo_local.data.filter_pool import FilterPool, Pace
from amigo_local.data.funnel import EXACT, SourceFunnel, place_of
from amigo_local.data.pair import Pair
from amigo_local.data.pair_filter import Filtered, Kept, KeptPreference, of_preferences
from amigo_local.data.reading import NAMED_SKIPS, Reading
from amigo_local.data.source_files import file_of
from amigo_local.data.spool import Fields, Spool, sync_file, write_whole
from amigo_local.domain.events import Emit, Progress
from amigo_local.domain.recipe import DataSettings

if TYPE_CHECKING:
    from amigo_local.data.near_duplicates import SignatureFile
    from amigo_local.data.seen_keys import SeenKeys

KEPT_FIELDS: Fields = (("length", "u4"), ("source", "u2"), ("key", "u8"), ("group", "u8"), ("place", "u8"))
"""30 bytes a row; the columns are Filtered's, with the source's index."""
SIGNATURES_FILE = "signatures"
_STATE = "state.json"


class Position(msgspec.Struct, kw_only=True):
    """How far `prepare` has come: what is told here is safe on the disk, whatever lies after it is cut off."""

    settings: str
    """Digest of what is prepared; another one begins anew."""
    source: int = 0
    """Index of the source that is being read; the number of sources when all are."""
    consumed: int = 0
    """Pairs of it that are through the filters."""
    kept: int = 0
    """Rows of the spool."""
    compared: bool = False
    """Whether near-duplicates are found."""
    chosen: int = 0
    """So many sources, in the order in which it is chosen from them, are rendered."""
    tried: int = 0
    """Rows of the next one that were rendered."""
    rendered: int = 0
    """Rows of the spool of rendered ones."""
    funnels: list[SourceFunnel] = []
    steps: tuple[str, ...] = ()
    """What the filters look for, in order."""


class Building:
    """The folder in which a set grows, and what is known of it."""

    def __init__(self, folder: Path, settings_digest: str, labels: list[str]) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self.position = self._saved() or Position(settings=settings_digest)
        if self.position.settings != settings_digest:
            self.position = Position(settings=settings_digest)
        if not self.position.funnels:
            self.position.funnels = [SourceFunnel(label) for label in labels]

    def _saved(self) -> Position | None:
        try:
            return msgspec.json.decode((self.folder / _STATE).read_bytes(), type=Position)
        except (FileNotFoundError, msgspec.MsgspecError):
            return None

    def save(self) -> None:
        write_whole(self.folder / _STATE, [msgspec.json.encode(self.position)])


class Gathering:
    """Reads sources into the spool, going on after what lies there already."""

    def __init__(self, building: Building, settings: DataSettings) -> None:
        from amigo_local.data.seen_keys import SeenKeys

        self._building, self._settings = building, settings
        self.spool = Spool(building.folder / "kept", KEPT_FIELDS)
        self.spool.cut(building.position.kept)
        self._seen: SeenKeys = SeenKeys()
        if self.spool.rows:
            self._seen.add(self.spool.entries()["key"])
        self._signatures: SignatureFile | None = None
        if settings.near_duplicates is not None and not building.position.compared:
            self._signatures = self._open_signatures()

    def _open_signatures(self) -> SignatureFile:
        from amigo_local.data.near_duplicates import SignatureFile

        file = SignatureFile(self._building.folder / SIGNATURES_FILE)
        file.truncate(self._building.position.kept)
        return file

    def read_all(self, reading_for: Callable[[], Reading], pool: FilterPool, emit: Emit, pace: Pace) -> None:
        position, sources = self._building.position, self._settings.sources
        while position.source < len(sources):
            source, funnel, reading = sources[position.source], position.funnels[position.source], reading_for()
            pairs = islice(_sound(file_of(source).read(source, reading), reading), position.consumed, None)
            for number, filtered in enumerate(pool.run(_batches(pairs, pace)), start=1):
                self._take(filtered, funnel)
                position.consumed += filtered.pairs
                emit(Progress(f"filtering {funnel.label}", position.consumed, None, "samples"))
                if number % pace.save_every_batches == 0:
                    self.save()
            funnel.end_reading(reading, position.consumed)
            position.source, position.consumed = position.source + 1, 0
            self.save()

    def _take(self, filtered: Filtered, funnel: SourceFunnel) -> None:
        import numpy as np

        self._building.position.steps = filtered.steps
        for reason, count in filtered.refused.items():
            funnel.refuse(reason, count, filtered.refused_places[reason])
        entries = self.spool.new_entries(len(filtered.lengths) // 4)
        entries["length"] = np.frombuffer(filtered.lengths, np.uint32)
        entries["source"] = self._building.position.source
        for name, column in (("key", filtered.keys), ("group", filtered.groups), ("place", filtered.places)):
            entries[name] = np.frombuffer(column, np.uint64)
        new = self._seen.add(entries["key"])
        records, signatures = filtered.records, filtered.signatures
        if not new.all():
            ends = np.cumsum(entries["length"], dtype=np.int64)
            begins = ends - entries["length"]
            again = np.flatnonzero(~new)
            places = [self._place(records[begins[at] : ends[at]]) for at in again[:NAMED_SKIPS]]
            funnel.refuse(EXACT, len(again), places)
            records = b"".join(records[begins[at] : ends[at]] for at in np.flatnonzero(new))
            entries = entries[new]
            signatures = signatures[new] if signatures is not None else None
        self.spool.append(records, entries)
        if self._signatures is not None:
            self._signatures.append(signatures)

    def _place(self, record: bytes) -> str:
        return place_of(decode_kept(record, self._settings).pair)

    def save(self) -> None:
        self.spool.sync()
        if self._signatures is not None:
            sync_file(self._signatures.path)
        self._building.position.kept = self.spool.rows
        self._building.save()


def _sound(pairs: Iterable[Pair], reading: Reading) -> Iterator[Pair]:
    """A docstring may hold half of a surrogate pair, which is no text that could be written to a file."""
    for pair in pairs:
        texts = "".join((pair.prompt, *pair.answers))
        try:
            texts.isascii() or texts.encode()
        except UnicodeEncodeError:
            reading.skip("holds half of a character", place_of(pair))
            continue
        yield pair


def _batches(pairs: Iterable[Pair], pace: Pace) -> Iterator[list[Pair]]:
    """Of so many pairs, or of fewer long ones: several batches are in memory at a time."""
    batch: list[Pair] = []
    characters = 0
    for pair in pairs:
        batch.append(pair)
        characters += len(pair.prompt) + sum(map(len, pair.answers))
        if len(batch) == pace.batch_pairs or characters >= pace.batch_characters:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch


def decode_kept(record: bytes, settings: DataSettings) -> Kept | KeptPreference:
    if of_preferences(settings):
        return msgspec.msgpack.decode(record, type=KeptPreference)
    return msgspec.msgpack.decode(record, type=Kept)
