"""Facts of tables: what `data check` tells of them after a look at their first rows."""

from __future__ import annotations

from collections.abc import Sequence

from amigo_local.data.reading import SourceFacts
from amigo_local.data.tables.mapping import RowMapping
from amigo_local.data.tables.pairs import look_at, no_rows
from amigo_local.data.tables.rows import Row, open_parquet
from amigo_local.data.tables.table import Table

_COUNTED_BYTES = 64_000_000  # lines are counted in files of up to this, which takes a blink
_LICENSES_SHOWN = 4


def facts_of(tables: Sequence[Table], mapping: RowMapping, *, on_disk: bool = True) -> SourceFacts:
    """Raises InputError for a table that can't be opened. Rows are counted where that is cheap."""
    problem, fix = "", ""
    first: list[Row] = []
    for table in tables:
        rows, error = look_at(table, mapping)
        first = first or rows
        if error is not None:
            problem, fix = error.message, error.hint
            break
        if not on_disk and rows:
            break  # a look at one of its files has to do
    if not problem and not first:
        error = no_rows(tables[0].shown if len(tables) == 1 else mapping.label)
        problem, fix = error.message, error.hint
    reachable = not problem
    if reachable and not _usable(first, mapping):
        problem = f"none of the first {len(first)} rows gives a pair"
    return SourceFacts(
        reachable=reachable,
        problem=problem,
        fix=fix,
        license=mapping.source.license or _licenses(first, mapping),
        size_bytes=sum(table.size_bytes for table in tables),
        rows=_count(tables) if on_disk and reachable else None,
        columns=tuple(dict.fromkeys(name for row in first for name in row)),
        used=mapping.used,
    )


def _usable(rows: Sequence[Row], mapping: RowMapping) -> bool:
    return any(not isinstance(mapping.pair(row, ""), str) for row in rows)


def _licenses(rows: Sequence[Row], mapping: RowMapping) -> str:
    found = sorted({license for row in rows if (license := mapping.license_of(row))})
    more = len(found) - _LICENSES_SHOWN
    return ", ".join(found[:_LICENSES_SHOWN]) + (f" and {more} more" if more > 0 else "")


def _count(tables: Sequence[Table]) -> int | None:
    """Of Parquet by its footers, of lines where they are few; None: not known without reading it all."""
    total = 0
    for table in tables:
        with table.open() as file:
            if table.kind == "parquet":
                total += open_parquet(file, table).metadata.num_rows
            elif table.kind == "jsonl" and not table.is_compressed and table.size_bytes <= _COUNTED_BYTES:
                total += sum(1 for line in file if line.strip())
            else:
                return None
    return total
