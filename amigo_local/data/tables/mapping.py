"""Mapping: what the columns of a table mean. One file in this folder for each that `mapping:` can name."""

from __future__ import annotations

import difflib
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterator
from importlib import import_module

from amigo_local.data.pair import Pair
from amigo_local.data.syntax import language_name
from amigo_local.data.tables.rows import Row
from amigo_local.domain.data_source import RowsSource
from amigo_local.domain.errors import InputError

EVERY_COLUMN = frozenset({"license", "lang", "language", "module"})
"""Taken over by every mapping where a row has them."""


class RowMapping(ABC):
    """Base: made once for a source; `pair` is called with every row."""

    columns: tuple[tuple[str, ...], ...] = ()
    """What a row must have, each under any of its names."""
    optional: tuple[str, ...] = ()
    """Further columns that are looked at."""
    used: str = ""
    """What becomes what, in a person's words."""

    def __init__(self, source: RowsSource, label: str, license: str) -> None:
        """`label` is what pairs call their source; `license` that of rows which don't say, besides the source's."""
        self.source, self.label = source, label
        self._license = source.license or license
        self._language = language_name(source.language or "")

    @abstractmethod
    def pair(self, row: Row, name: str) -> Pair | str:
        """The pair that a row is, or the reason why it is none."""

    def remarks(self) -> Iterator[str]:
        """What to tell after the last row, besides what was skipped."""
        yield from ()

    def license_of(self, row: Row) -> str:
        value = row.get("license")
        return value if isinstance(value, str) and value else self._license

    def language_of(self, row: Row) -> str:
        value = row.get("language") or row.get("lang")
        return language_name(value) if isinstance(value, str) and value else self._language

    @property
    def wanted(self) -> frozenset[str]:
        """Every column that is looked at."""
        named = {name for names in self.columns for name in names}
        return frozenset(named | set(self.optional) | EVERY_COLUMN | set(self.source.where))


def text_of(row: Row, *columns: str) -> str:
    """Of the first of these columns that holds text; empty where none does."""
    for column in columns:
        value = row.get(column)
        if isinstance(value, str) and value:
            return value
    return ""


def mapping_of(source: RowsSource, label: str, license: str = "") -> RowMapping:
    made: RowMapping = import_module(f"amigo_local.data.tables.{source.mapping}").MAPPING(source, label, license)
    return made


def check_columns(mapping: RowMapping, found: Collection[str], shown: str) -> None:
    """Raises InputError, with the columns that there are and the nearest spelling, for one that is missing."""
    needed = (*mapping.columns, *((column,) for column in mapping.source.where))
    for names in needed:
        if not any(name in found for name in names):
            close = next((near for name in names if (near := difflib.get_close_matches(name, found, 1))), None)
            meant = f"did you mean {close[0]!r}? " if close else ""
            raise InputError(
                f"{shown}: no column {' or '.join(map(repr, names))} (columns found: {', '.join(found) or 'none'})",
                meant + how_to_name(mapping.source),
            )


def how_to_name(source: RowsSource) -> str:
    if source.mapping != "columns":
        return f"choose another mapping than {source.mapping}, or other files"
    names = "prompt and completion" if source.chosen is None else "prompt, chosen and rejected"
    return f"name the columns in the source's {names}"
