"""Source `jsonl`: JSON-lines files whose columns the recipe declares."""

from __future__ import annotations

from collections.abc import Iterator

from amigo_local.data.pair import Pair
from amigo_local.data.reading import Reading, SourceFacts
from amigo_local.data.tables.on_disk import facts_on_disk, pairs_on_disk
from amigo_local.domain.data_source import JsonlSource


def read(source: JsonlSource, reading: Reading) -> Iterator[Pair]:
    return pairs_on_disk(source, source.jsonl, "jsonl", reading)


def look(source: JsonlSource, reading: Reading) -> SourceFacts:
    return facts_on_disk(source, source.jsonl, "jsonl")
