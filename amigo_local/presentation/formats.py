"""Values of a Table as text, by the format of their column."""

from __future__ import annotations

from amigo_local.domain.artifact import Figure
from amigo_local.domain.events import Column, Table
from amigo_local.domain.units import format_seconds, format_size


def format_value(value: Figure, column: Column) -> str:
    """`—` stands for "not measured"."""
    if value is None:
        return "—"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, str) or column.format == "text":
        return str(value)
    formatters = {
        "bytes": lambda: format_size(value),
        "seconds": lambda: format_seconds(value),
        "count": lambda: f"{value:,.0f}",
        "ratio": lambda: f"{100 * value:.1f} %",
        "number": lambda: f"{value:.4g}",
    }
    return formatters[column.format]()


def is_numeric(column: Column) -> bool:
    """Whether the column is set right-aligned."""
    return column.format != "text"


def cells(table: Table) -> list[list[str]]:
    """Every row's values as text."""
    return [
        [format_value(value, column) for value, column in zip(row, table.columns, strict=True)] for row in table.rows
    ]
