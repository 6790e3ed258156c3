"""Source `hub`: a data set of the Hugging Face hub at one commit, read by the paths of its files."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import BinaryIO

from amigo_local.data.evaluation_names import is_evaluation_set
from amigo_local.data.known_sets import known_set
from amigo_local.data.pair import Pair
from amigo_local.data.reading import HubAbsent, Reading, RemoteFile, RemoteSet, SourceFacts
from amigo_local.data.tables.facts import facts_of
from amigo_local.data.tables.mapping import RowMapping, mapping_of
from amigo_local.data.tables.pairs import evaluation_refused, pairs_of
from amigo_local.data.tables.remote_bytes import open_remote
from amigo_local.data.tables.table import Table, kind_of
from amigo_local.domain.data_source import HubSource
from amigo_local.domain.errors import InputError
from amigo_local.domain.events import Note

NOT_REACHED = "hub not reached"


def read(source: HubSource, reading: Reading) -> Iterator[Pair]:
    """A file is fetched when its turn comes. Raises InputError for what isn't there, is gated, or is an evaluation
    set; HubAbsent where nothing can be asked, unless the source is optional: then it gives nothing, and says so."""
    _refuse_evaluation(source)
    started = False
    try:
        found = _open(source, reading)
        for pair in pairs_of(_tables(found, whole=True), _mapping(source, found), reading):
            started = True
            yield pair
    except HubAbsent as error:
        if not source.optional or started:  # half a set would be another set each time
            raise
        reading.skip(NOT_REACHED)
        reading.emit(Note(f"{source.hub} is left out: {error.message}", "warning", error.hint))


def look(source: HubSource, reading: Reading) -> SourceFacts:
    """Fetches nothing but the beginning of one file, where the set isn't here."""
    known = known_set(source.hub)
    license = source.license or (known.license if known else "")
    try:
        _refuse_evaluation(source)
        found = _open(source, reading)
        license = source.license or found.license or license
        mapping = _mapping(source, found)
        facts = facts_of(_tables(found, whole=False), mapping, on_disk=False)
    except InputError as error:
        used = mapping_of(source, source.hub).used
        return SourceFacts(reachable=False, problem=error.message, fix=error.hint, license=license, used=used)
    return SourceFacts(
        reachable=facts.reachable,
        problem=facts.problem,
        fix=facts.fix,
        revision=found.revision,
        license=source.license or facts.license or license,
        size_bytes=facts.size_bytes,
        columns=facts.columns,
        used=facts.used,
    )


def _open(source: HubSource, reading: Reading) -> RemoteSet:
    if reading.open_hub is None:
        raise HubAbsent(f"{source.hub}: no hub can be asked from here", "give its files as jsonl, json or parquet")
    return reading.open_hub(source)


def _refuse_evaluation(source: HubSource) -> None:
    if called := is_evaluation_set(source.hub):
        raise evaluation_refused(source.hub, called)


def _mapping(source: HubSource, found: RemoteSet) -> RowMapping:
    return mapping_of(source, source.hub, found.license)


def _tables(found: RemoteSet, *, whole: bool) -> tuple[Table, ...]:
    return tuple(_table(file, whole) for file in found.files)


def _table(file: RemoteFile, whole: bool) -> Table:
    kind = kind_of(file.path)
    if kind is None:
        raise InputError(
            f"{file.path} can't be read: it is no .jsonl, .json or .parquet file", "narrow the source's files"
        )
    return Table(file.path, kind, file.size_bytes, _local(file) if whole else _remote(file))


def _local(file: RemoteFile) -> Callable[[], BinaryIO]:
    return lambda: file.local().open("rb")


def _remote(file: RemoteFile) -> Callable[[], BinaryIO]:
    return lambda: open_remote(file.size_bytes, file.part)
