"""Finds the file in data/sources/ that reads a kind of source: the folder listing is the registry."""

from __future__ import annotations

from collections.abc import Iterator
from importlib import import_module
from typing import Protocol, cast

from amigo_local.data.pair import Pair
from amigo_local.data.reading import Reading, SourceFacts
from amigo_local.domain.data_source import DataSource


class SourceFile(Protocol):
    """What every file in data/sources/ exports."""

    def read(self, source: DataSource, reading: Reading) -> Iterator[Pair]:
        """Pairs, always in the same order for the same input; what is left out goes to `reading.skip`.

        Raises InputError for what is missing or can't be read, and when a whole source maps to nothing.
        """

    def look(self, source: DataSource, reading: Reading) -> SourceFacts:
        """What there is, without reading more than a few rows. Raises nothing that a person could mend."""


def file_of(source: DataSource) -> SourceFile:
    return cast(SourceFile, import_module(f"amigo_local.data.sources.{source.kind}"))
