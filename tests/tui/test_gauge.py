"""Bars of how much is used."""

from __future__ import annotations

import pytest
from textual.pilot import Pilot

from amigo_local.tui.widgets.gauge import Gauge, used_of
from tests.support.widget_host import WidgetHost, hosted

GIB = 1 << 30


@pytest.mark.parametrize(
    ("used", "total", "text"),
    [(int(4.1 * GIB), 6 * GIB, "4.1 of 6.0 GiB"), (300 << 20, GIB, "300.0 MiB of 1.0 GiB"), (0, 5, "0 of 5 B")],
)
def test_a_unit_that_both_have_is_said_once(used: int, total: int, text: str) -> None:
    assert used_of(used, total) == text


def lines_of(width: int, *steps: tuple[str, tuple[object, ...]]) -> list[str]:
    shown: list[str] = []

    async def body(app: WidgetHost, pilot: Pilot[None]) -> None:
        for name, arguments in steps:
            getattr(app.query_one(Gauge), name)(*arguments)
        await pilot.pause()
        shown.extend(line for line in app.screen_text().splitlines() if line.strip())
        assert app.query_one(Gauge).size.height == len(shown)

    hosted(Gauge("VRAM"), body=body, size=(width, 6))
    return shown


def test_the_bar_shows_the_share_beside_its_numbers_or_below_them() -> None:
    half = ("show", (3 * GIB, 6 * GIB))
    assert lines_of(40, half) == ["VRAM " + "█" * 10 + "░" * 10 + " 3.0 of 6.0 GiB"]
    assert lines_of(24, half) == ["VRAM 3.0 of 6.0 GiB", "█" * 12 + "░" * 12]


def test_more_than_all_and_nothing_at_all_stay_within_the_bar() -> None:
    assert lines_of(24, ("show", (9 * GIB, 6 * GIB)))[1] == "█" * 24
    assert lines_of(24, ("show", (0, 0))) == ["VRAM 0 of 0 B"]


def test_what_isnt_known_says_so() -> None:
    assert lines_of(24) == ["VRAM …"]
    assert lines_of(24, ("show", (1, 2)), ("show_unknown", ("no card",))) == ["VRAM no card"]
    assert lines_of(24, ("show_free", (180 * GIB,))) == ["VRAM 180.0 GiB free"]
