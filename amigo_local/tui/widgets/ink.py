"""Ink: the colours that tell series and parts apart, by the theme in use, and text made to fit a width."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

from rich.cells import cell_len, chop_cells, set_cell_size

SERIES_COLORS = 6
MUTED = "$foreground 60%"
"""$text-muted, as far as a Content knows it."""
# A theme that isn't ours names no series: these of its colours stand in.
_INSTEAD = ("primary", "accent", "success", "secondary", "warning", "error")


def series_color(variables: Mapping[str, str], place: int) -> str:
    """`#56B4E9` of a theme's variables; places count from 0 and begin anew after SERIES_COLORS."""
    place %= SERIES_COLORS
    return variables.get(f"series-{place + 1}") or variables.get(_INSTEAD[place]) or "#888888"


def cut(text: str, width: int) -> str:
    """At most `width` terminal cells, the last one `…` where something is left out."""
    if width <= 0:
        return ""
    if cell_len(text) <= width:
        return text
    return set_cell_size(text, width - 1).rstrip() + "…"


def fitted(text: str, width: int, right: bool = False) -> str:
    """Exactly `width` terminal cells."""
    text = cut(text, width)
    space = " " * (width - cell_len(text))
    return space + text if right else text + space


def folded(text: str, width: int) -> Iterator[str]:
    """Lines of at most `width` cells, broken between words where that is possible."""
    for line in text.split("\n"):
        if cell_len(line) <= width:
            yield line.rstrip()
            continue
        row = ""
        for word in re.findall(r"\s*\S+", line):
            if row and cell_len(row) + cell_len(word) > width:
                yield row
                row = word.lstrip()
            else:
                row += word
            while cell_len(row) > width:
                first, *rest = chop_cells(row, width)
                yield first
                row = "".join(rest)
        yield row
