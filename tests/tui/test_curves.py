"""Plots of metric series."""

from __future__ import annotations

import math
import time

from textual.pilot import Pilot

from amigo_local.domain.series import Series
from amigo_local.presentation.smoothing import smoothed
from amigo_local.tui.widgets.curves import Curve, CurveKind, Curves
from tests.support.widget_host import WidgetHost, hosted

KINDS: tuple[CurveKind, ...] = ("line", "dots", "marks")
LOSS = [0.5 + math.exp(-step / 40) for step in range(200)]


def drawn(curves: list[Curve], size: tuple[int, int] = (60, 12), **more: bool) -> str:
    shown: list[str] = []

    async def body(app: WidgetHost, pilot: Pilot[None]) -> None:
        app.query_one(Curves).show(curves)
        await pilot.pause()
        shown.append(app.screen_text())

    hosted(Curves("loss", **more), body=body, size=size)
    return shown[0]


def test_a_falling_series_falls_from_the_top_left_to_the_bottom_right() -> None:
    text = drawn([Curve("train", range(200), LOSS)])
    lines = text.splitlines()
    assert lines[0] == "loss  ━ train 0.5069"
    plot = [line[6:] for line in lines[1:10]]
    tops = [next((y for y, line in enumerate(plot) if line[x : x + 1].strip()), None) for x in (0, 10, 25, 50)]
    assert tops == sorted(tops, key=lambda y: y or 0) and tops[0] == 0 and tops[-1] == 8
    assert "┤" in text and "┴" in text and lines[-1].split() == ["step", "0", "50", "100", "150"]


def test_evaluations_are_marked_and_named_and_noise_lies_behind() -> None:
    text = drawn(
        [
            Curve("each step", range(200), LOSS, 0, "dots"),
            Curve("evaluation", [50, 100, 150], [0.9, 0.8, 0.7], 1, "marks"),
        ]
    )
    assert text.count("◆") == 4, "one in the legend"
    assert text.splitlines()[0] == "loss  · each step  ◆ evaluation 0.7"


ODD = ([1.5], [2.0, 2.0, 2.0], [0.0], [math.nan], [math.nan, 1.0, math.inf, 2.0], [1e300, -1e300], [1e-300])


def test_odd_series_are_drawn_all_the_same_at_any_size() -> None:
    async def body(app: WidgetHost, pilot: Pilot[None]) -> None:
        widget = app.query_one(Curves)
        for width, height in ((60, 12), (20, 4), (3, 2), (1, 1), (120, 40)):
            await pilot.resize_terminal(width, height)
            await pilot.pause()
            for values in ODD:
                for kind in KINDS:
                    widget.show([Curve("x", range(len(values)), values, 0, kind)])
                    lines = [widget.render_line(y) for y in range(widget.size.height)]
                    assert all(line.cell_length == widget.size.width for line in lines)
                    assert lines[0].text.startswith("loss"[: widget.size.width - 1])

    hosted(Curves("loss"), body=body)


def test_a_single_point_is_seen() -> None:
    assert "●" in drawn([Curve("train", [3], [1.25])])


def test_nothing_yet_is_said() -> None:
    assert drawn([]).splitlines()[0] == "loss  none yet"
    assert drawn([Curve("train", [], [])]).splitlines()[0] == "loss  none yet"


def test_several_curves_are_told_apart_without_colour() -> None:
    text = drawn([Curve(f"recipe {n}", range(50), [n] * 50, n, glyph=str(n)) for n in range(1, 6)], (60, 16))
    assert all(f"{n} recipe {n} {n}" in text for n in range(1, 6))
    ends = [line[-1] for line in text.splitlines() if (line[-1:] in "12345" and "│" in line) or "┤" in line]
    assert ends == ["5", "4", "3", "2", "1"]


def test_from_zero_shows_how_much_of_the_whole_it_is() -> None:
    assert (
        drawn([Curve("", range(50), [100.0, 101.0] * 25)], from_zero=True).splitlines()[-3].split("┤")[0].strip() == "0"
    )


def test_many_points_are_drawn_within_the_time_of_a_key() -> None:
    raw, evaluations = Series(), Series()
    for step in range(100_000):
        raw.add(step, 0.5 + math.exp(-step / 9000) + 0.1 * math.sin(step * 1.3))
    for step in range(0, 100_000, 50):
        evaluations.add(step, 0.6 + math.exp(-step / 9000))

    async def body(app: WidgetHost, pilot: Pilot[None]) -> None:
        widget = app.query_one(Curves)
        course = smoothed(raw.steps, raw.values)
        curves = (
            Curve("each step", raw.steps, raw.values, 0, "dots"),
            Curve("train", raw.steps, course),
            Curve("evaluation", evaluations.steps, evaluations.values, 1, "marks"),
        )
        best = math.inf
        for _ in range(7):
            widget.show(curves)
            began = time.perf_counter()
            widget.render_line(0)
            best = min(best, time.perf_counter() - began)
        assert best < 0.05, f"{1000 * best:.1f} ms"
        print(f"{1000 * best:.1f} ms")

    hosted(Curves("loss"), body=body, size=(120, 20))


def test_a_resize_and_a_theme_draw_it_anew() -> None:
    async def body(app: WidgetHost, pilot: Pilot[None]) -> None:
        widget = app.query_one(Curves)
        widget.show([Curve("train", range(200), LOSS)])
        await pilot.resize_terminal(40, 10)
        await pilot.pause()
        assert max(len(line) for line in app.screen_text().splitlines()) == 40

        def colors() -> set[str]:
            return {
                str(s.style.color.name) for y in range(9) for s in widget.render_line(y) if s.style and s.style.color
            }

        await pilot.pause()
        dark = colors()
        app.theme = "amigo-light"
        await pilot.pause()
        assert "#0072b2" in colors() and "#0072b2" not in dark

    hosted(Curves("loss"), body=body, theme="amigo-dark")
