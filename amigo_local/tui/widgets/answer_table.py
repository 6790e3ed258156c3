"""table_lines: a Markdown table as lines of a given width."""

from __future__ import annotations

from textual.content import Content

from amigo_local.tui.widgets.ink import MUTED

_NARROWEST = 4
_BETWEEN = " │ "


def table_lines(rows: list[list[Content]], width: int) -> list[Content]:
    """Cells are wrapped where the table is too wide; where not even that fits, each row is a line of text.

    The first row is the header; rows may be of different lengths.
    """
    if not rows:
        return []
    count = max(map(len, rows))
    widths = [max((row[at].cell_length for row in rows if at < len(row)), default=1) for at in range(count)]
    widths = _shrunk([max(1, wanted) for wanted in widths], width - len(_BETWEEN) * (count - 1))
    if not widths:
        return [line for row in rows for line in Content(_BETWEEN).join(row).wrap(width)]
    lines = _row_lines([cell.stylize("bold") for cell in rows[0]], widths)
    lines.append(Content.styled("─┼─".join("─" * wide for wide in widths), MUTED))
    return lines + [line for row in rows[1:] for line in _row_lines(row, widths)]


def _shrunk(widths: list[int], room: int) -> list[int]:
    """Widths that fit, taken from the widest; empty when none do."""
    if sum(min(wide, _NARROWEST) for wide in widths) > room:
        return []
    widths = list(widths)
    while (over := sum(widths) - room) > 0:
        widest = max(widths)
        places = [at for at, wide in enumerate(widths) if wide == widest]
        below = max([wide for wide in widths if wide < widest] + [_NARROWEST])
        for at in places:
            cut = min(widest - below, -(-over // len(places)), over)
            widths[at] -= cut
            over -= cut
    return widths


def _row_lines(row: list[Content], widths: list[int]) -> list[Content]:
    cells = [*row, *[Content()] * (len(widths) - len(row))]
    wrapped = [cell.wrap(wide) if cell.cell_length > wide else [cell] for cell, wide in zip(cells, widths, strict=True)]
    between = Content.styled(_BETWEEN, MUTED)
    return [
        between.join(
            _padded(cell[number] if number < len(cell) else Content(), wide)
            for cell, wide in zip(wrapped, widths, strict=True)
        )
        for number in range(max(map(len, wrapped)))
    ]


def _padded(line: Content, width: int) -> Content:
    line = line.rstrip()
    return line.pad_right(max(0, width - line.cell_length))
