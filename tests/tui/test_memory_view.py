"""Stacked bars of a plan."""

from __future__ import annotations

import re

from textual.pilot import Pilot

from amigo_local.domain.memory_plan import Batching, MemoryPlan, Part
from amigo_local.presentation.memory_bar import stacked_bar
from amigo_local.tui.widgets.memory_view import MemoryView
from tests.support.widget_host import WidgetHost, hosted

MIB = 1 << 20
PARTS = (
    Part("weights", 3000 * MIB),
    Part("adapter", 500 * MIB),
    Part("a very long name of a part of it all", 1500 * MIB),
)


def plan(vram_budget: int = 6000 * MIB) -> MemoryPlan:
    return MemoryPlan(
        device="cuda", batching=Batching(micro_batch=1, accumulation=8), max_length_tokens=256, optimizer="adamw_8bit",
        recompute=True, vram=PARTS, vram_budget_bytes=vram_budget, disk=PARTS[:1], disk_budget_bytes=9000 * MIB,
    )  # fmt: skip


def shown(memory: MemoryPlan, width: int, theme: str = "") -> list[str]:
    lines: list[str] = []

    async def body(app: WidgetHost, pilot: Pilot[None]) -> None:
        assert not app.screen_text().strip()
        app.query_one(MemoryView).show(memory)
        await pilot.pause()
        lines.extend(app.screen_text().splitlines())

    hosted(MemoryView(), body=body, size=(width, 16), theme=theme)
    return lines


def test_the_bar_is_the_one_of_the_text_form() -> None:
    """Each part's letter stands once in its block, everything else of the block is its colour."""
    text = stacked_bar(PARTS, 6000 * MIB, 38)
    bar = shown(plan(), 38)[1]
    for letter in "abc":
        run = re.search(f"{letter}+", text)
        assert run and run.start() <= bar.index(letter) < run.end() and bar.count(letter) == 1
    assert bar.endswith(re.search("·*$", text)[0])  # type: ignore[index]


def test_it_fits_38_columns_and_lists_every_size() -> None:
    lines = shown(plan(), 38)
    assert lines[0].split() == ["VRAM", "4.9", "of", "5.9", "GiB", "83", "%"]
    assert [line[:20].rstrip() for line in lines[2:5]] == [" a  weights", " b  adapter", " c  a very long name"]
    assert [line[27:] for line in lines[2:5]] == ["    2.9 GiB", "  500.0 MiB", "ar… 1.5 GiB"]
    assert lines[6].startswith("disk 2.9 of 8.8 GiB") and not any(line.startswith("RAM") for line in lines)
    assert max(map(len, lines)) <= 38


def test_a_wide_screen_has_two_parts_side_by_side() -> None:
    lines = shown(plan(), 80)
    assert "a  weights" in lines[2] and "c  a very long name of a pa" in lines[2]


def test_what_is_over_the_budget_is_marked_and_told() -> None:
    lines = shown(plan(vram_budget=4000 * MIB), 40)
    assert lines[0].endswith("! 1000.0 MiB over") and lines[1].endswith("!" * 8) and lines[1].count("!") == 8


def test_neighbours_differ_in_colour_in_both_themes() -> None:
    for theme in ("amigo-dark", "amigo-light", "nord"):
        grounds: list[str] = []

        async def body(app: WidgetHost, pilot: Pilot[None], grounds: list[str] = grounds) -> None:
            app.query_one(MemoryView).show(plan())
            await pilot.pause()
            strip = app.screen._compositor.render_strips()[1]
            grounds.extend(str(s.style.bgcolor) for s in strip if s.style and s.text.strip() in ("a", "b", "c"))

        hosted(MemoryView(), body=body, size=(60, 16), theme=theme)
        assert len(set(grounds)) == 3, theme
