"""Pairs of tables: every row through its mapping; what can't be used is counted, and named by file and line."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from amigo_local.data.evaluation_names import holds_evaluation_ids
from amigo_local.data.pair import Pair
from amigo_local.data.reading import Reading
from amigo_local.data.tables.mapping import RowMapping, check_columns, how_to_name
from amigo_local.data.tables.rows import Row, first_rows, rows_of
from amigo_local.data.tables.table import Table
from amigo_local.domain.data_source import RowsSource
from amigo_local.domain.errors import InputError
from amigo_local.domain.events import Note, Progress

PEEKED_ROWS = 50
"""A column that none of a file's first rows has is missing; one that only later rows lack is theirs alone."""
_PROGRESS_ROWS = 5000
_VALUES_SHOWN = 8


@dataclass
class _Tally:
    """What becomes of the rows of one source."""

    rows: int = 0
    pairs: int = 0
    columns: dict[str, None] = field(default_factory=dict)
    reasons: Counter[str] = field(default_factory=Counter)
    other_values: dict[str, Counter[str]] = field(default_factory=dict)
    """Column of `where` -> values that rows have instead, the first few different ones."""


def pairs_of(tables: Sequence[Table], mapping: RowMapping, reading: Reading) -> Iterator[Pair]:
    """In the order of tables and rows.

    Raises InputError for a file that lacks a column or is an evaluation set, and when not one row gave a pair.
    """
    source, tally = mapping.source, _Tally()
    for table in tables:
        if source.rows is not None and tally.rows >= source.rows:
            break
        first, problem = look_at(table, mapping)
        if problem is not None:
            raise problem
        for row in first:
            tally.columns.update(dict.fromkeys(row))
        yield from _pairs(table, mapping, reading, tally, numbered=len(tables) > 1)
    reading.emit(Progress(f"reading {mapping.label}", tally.rows, tally.rows, "rows"))
    for remark in mapping.remarks():
        reading.emit(Note(remark))
    if not tally.pairs:
        raise _nothing(tables, mapping, tally)


def _pairs(table: Table, mapping: RowMapping, reading: Reading, tally: _Tally, *, numbered: bool) -> Iterator[Pair]:
    source = mapping.source
    label = f"reading {table.name}"
    prefix = f"{table.name} {table.unit}" if numbered else table.unit
    pair_of, where, last = mapping.pair, source.where, source.rows
    for number, row in rows_of(table, mapping.wanted):
        if last is not None and tally.rows >= last:
            return
        tally.rows += 1
        reading.rows += 1
        if tally.rows % _PROGRESS_ROWS == 0:
            reading.emit(Progress(label, tally.rows, last, "rows"))
        if isinstance(row, str):
            _skip(row, table.place(number), reading, tally)
            continue
        if where and (column := _elsewhere(row, source)):
            _count_other(column, row, tally)
            _skip(f"another {column} than asked for", "", reading, tally)
            continue
        pair = pair_of(row, f"{prefix} {number}")
        if isinstance(pair, str):
            _skip(pair, table.place(number), reading, tally)
            continue
        tally.pairs += 1
        yield pair


def _skip(reason: str, place: str, reading: Reading, tally: _Tally) -> None:
    tally.reasons[reason] += 1
    reading.skip(reason, place)


def _elsewhere(row: Row, source: RowsSource) -> str:
    """The first column of `where` that has none of its values; empty: the row is wanted."""
    return next((column for column, values in source.where.items() if _spelled(row.get(column)) not in values), "")


def _spelled(value: object) -> str:
    """As a recipe would write it."""
    if isinstance(value, bool):
        return "true" if value else "false"
    return "" if value is None else str(value)


def _count_other(column: str, row: Row, tally: _Tally) -> None:
    values = tally.other_values.setdefault(column, Counter())
    value = _spelled(row.get(column))
    if value in values or len(values) < _VALUES_SHOWN:
        values[value] += 1


def look_at(table: Table, mapping: RowMapping) -> tuple[list[Row], InputError | None]:
    """The first rows of a table, and why it can't be trained on."""
    first, bad = first_rows(table, min(PEEKED_ROWS, mapping.source.rows or PEEKED_ROWS))
    if not first and bad is not None:
        number, reason = bad
        also = " It opens with [: name it as json" if table.kind == "jsonl" and _opens_list(table) else ""
        return first, InputError(
            f"{table.shown}: not one row can be read (first: {table.place(number)}: {reason})",
            f"write one JSON object per line.{also}" if table.kind == "jsonl" else "give a file of objects",
        )
    if called := holds_evaluation_ids(first):
        return first, evaluation_refused(table.shown, called)
    if first:
        found = {name: None for row in first for name in row}
        try:
            check_columns(mapping, list(found), table.shown)
        except InputError as error:
            return first, error
    return first, None


def _opens_list(table: Table) -> bool:
    if table.is_compressed:
        return False
    with table.open() as file:
        return file.read(64).lstrip().startswith(b"[")


def evaluation_refused(what: str, called: str) -> InputError:
    return InputError(
        f"{what} is an evaluation set ({called}): a model that was trained on it can't be measured with it",
        "take another set; to keep its problems out of training: data.evaluation_sets: [FILE]",
    )


def no_rows(shown: str) -> InputError:
    return InputError(f"{shown}: no rows", "give a file that holds some")


def _nothing(tables: Sequence[Table], mapping: RowMapping, tally: _Tally) -> InputError:
    shown = tables[0].shown if len(tables) == 1 else f"{len(tables)} files of {mapping.label}"
    found = ", ".join(tally.columns) or "none"
    if not tally.rows:
        return no_rows(shown)
    reasons = ", ".join(f"{count} {reason!r}" for reason, count in tally.reasons.most_common(4))
    others = "".join(
        f"; {column} is {', '.join(f'{value!r} ({count})' for value, count in values.most_common())}"
        for column, values in tally.other_values.items()
    )
    return InputError(
        f"{shown}: none of {tally.rows:,} rows gives a pair: {reasons} (columns found: {found}{others})",
        "correct the source's where" if others else how_to_name(mapping.source),
    )
