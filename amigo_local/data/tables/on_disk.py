"""Tables on this disk: pairs and facts of the files that a source's path or pattern names."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from amigo_local.data.pair import Pair
from amigo_local.data.reading import Reading, SourceFacts
from amigo_local.data.tables.facts import facts_of
from amigo_local.data.tables.mapping import mapping_of
from amigo_local.data.tables.pairs import pairs_of
from amigo_local.data.tables.table import Kind, tables_on_disk
from amigo_local.domain.data_source import RowsSource
from amigo_local.domain.errors import InputError


def pairs_on_disk(source: RowsSource, pattern: str, kind: Kind, reading: Reading) -> Iterator[Pair]:
    """Raises InputError as `tables_on_disk` and `pairs_of` do."""
    yield from pairs_of(tables_on_disk(pattern, kind), mapping_of(source, Path(pattern).name), reading)


def facts_on_disk(source: RowsSource, pattern: str, kind: Kind) -> SourceFacts:
    mapping = mapping_of(source, Path(pattern).name)
    try:
        return facts_of(tables_on_disk(pattern, kind), mapping)
    except InputError as error:
        return SourceFacts(reachable=False, problem=error.message, fix=error.hint, used=mapping.used)
