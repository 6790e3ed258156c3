"""The canvas of dots."""

from __future__ import annotations

import math

from amigo_local.tui.widgets.braille import Braille


def rows(canvas: Braille) -> list[str]:
    return ["".join(text for text, _ in canvas.runs(row)) for row in range(canvas.height)]


def test_each_dot_has_its_bit_of_the_cell() -> None:
    """The pattern of Unicode's block: dots 1 2 3 7 down the left, 4 5 6 8 down the right."""
    names = [(0, 0, "⠁"), (0, 1, "⠂"), (0, 2, "⠄"), (1, 0, "⠈"), (1, 1, "⠐"), (1, 2, "⠠"), (0, 3, "⡀"), (1, 3, "⢀")]
    for x, y, glyph in names:
        canvas = Braille(1, 1)
        canvas.dot(x, y, 1)
        assert rows(canvas) == [glyph]


def test_what_lies_outside_isnt_drawn() -> None:
    canvas = Braille(2, 2)
    for x, y in ((-1, 0), (4, 0), (0, 8), (0, -1)):
        canvas.dot(x, y, 1)
        canvas.mark(x, y, "x", 1)
    assert rows(canvas) == ["  ", "  "]


def test_a_curve_is_connected_and_a_gap_stays_open() -> None:
    canvas = Braille(4, 1)
    canvas.curve([0, 3, 4, 7], [3, 3, math.nan, 0], 1)
    assert rows(canvas) == ["⣀⣀ ⠈"]


def test_of_many_points_in_a_column_the_extremes_are_seen() -> None:
    canvas = Braille(1, 2)
    canvas.curve([0] * 5, [3, 0, 7, 4, 4], 1)
    assert rows(canvas) == ["⡇", "⡇"]


def test_runs_are_of_one_ink_and_the_later_one_wins() -> None:
    canvas = Braille(3, 1)
    canvas.line(0, 0, 5, 0, 1)
    canvas.dot(2, 3, 2)
    canvas.mark(5, 0, "◆", 3)
    assert list(canvas.runs(0)) == [("⠉", 1), ("⡉", 2), ("◆", 3)]
