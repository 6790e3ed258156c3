"""Source `json`: JSON files that are each one list of objects whose columns the recipe declares."""

from __future__ import annotations

from collections.abc import Iterator

from amigo_local.data.pair import Pair
from amigo_local.data.reading import Reading, SourceFacts
from amigo_local.data.tables.on_disk import facts_on_disk, pairs_on_disk
from amigo_local.domain.data_source import JsonSource


def read(source: JsonSource, reading: Reading) -> Iterator[Pair]:
    return pairs_on_disk(source, source.json, "json", reading)


def look(source: JsonSource, reading: Reading) -> SourceFacts:
    return facts_on_disk(source, source.json, "json")
