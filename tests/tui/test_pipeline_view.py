"""The stages of a loop."""

from __future__ import annotations

import pytest
from textual.pilot import Pilot

from amigo_local.domain.events import Progress
from amigo_local.domain.pipeline import PipelineStage, PipelineStatus
from amigo_local.tui.widgets.pipeline_view import PipelineView, grouped
from tests.support.widget_host import WidgetHost, hosted

GIB = 1 << 30
RECIPES = ("nl_to_code", "context", "debugging", "reasoning", "preference")


def stage(name: str, status: PipelineStatus = "waiting", **more: object) -> PipelineStage:
    return PipelineStage(stage=name, status=status, **more)  # type: ignore[arg-type]


LOOP = [
    stage("tokenizer", "done", size_bytes=30 << 20, seconds=5.0, figures={"vocabulary": 262144}),
    stage("prepare", "stale", size_bytes=21 << 20, seconds=380, figures={"train_samples": 4812}),
    stage("train", "running", size_bytes=4 * GIB, seconds=65050, progress=Progress("training", 180, 600, "steps")),
    stage("export", "failed", is_next=True, error="no room\nat all"),
    stage("register", "cancelled"),
    stage("evaluate", "next", is_next=True),
]
CHAIN = [
    stage("tokenizer", "done"),
    *(stage("prepare", "done", of=recipe) for recipe in RECIPES),
    stage("quantize", "done"),
    *(
        stage(name, "running" if (recipe, name) == ("context", "train") else "waiting", of=recipe)
        for recipe in RECIPES
        for name in ("train", "export", "evaluate", "gate")
    ),
    stage("evaluate"),
]


def shown(rows: list[PipelineStage], size: tuple[int, int] = (54, 24)) -> list[str]:
    lines: list[str] = []

    async def body(app: WidgetHost, pilot: Pilot[None]) -> None:
        app.query_one(PipelineView).show(rows)
        await pilot.pause()
        lines.extend(line.rstrip() for line in app.screen_text().splitlines() if line.strip())

    hosted(PipelineView(), body=body, size=size)
    return lines


def test_every_status_is_a_sign_and_a_word() -> None:
    lines = shown(LOOP)
    words = [line.replace("›", " ").split()[:3] for line in lines if "no room" not in line]
    assert words == [
        ["✓", "tokenizer", "done"],
        ["↻", "prepare", "stale"],
        ["▶", "train", "running"],
        ["✗", "export", "failed"],
        ["■", "register", "cancelled"],
        ["●", "evaluate", "next"],
    ]


def test_figures_sizes_and_times_are_aligned_and_expected_ones_are_told_apart() -> None:
    lines = shown(LOOP, (90, 24))
    assert lines[1].split() == ["↻", "prepare", "stale", "4,812", "samples", "21.0", "MiB", "6", "min", "20", "s"]
    assert "███░░░░░░░ 30 %" in lines[2] and lines[2].endswith("4.0 GiB ~18 h 04 min")
    assert len({len(line) for line in lines[:3]}) == 1, "right-aligned"


def test_where_it_is_narrow_sizes_give_way_to_figures() -> None:
    text = "\n".join(shown(LOOP, (54, 24)))
    assert "4,812 samples" in text and "~18 h 04 min" in text and "MiB" not in text
    assert max(len(line) for line in shown(LOOP, (40, 24))) <= 40


def test_what_failed_says_why_and_what_is_next_is_pointed_at() -> None:
    lines = shown(LOOP)
    assert lines[3].startswith(" › ✗ export") and lines[4].strip() == "no room"
    assert [line for line in lines if "›" in line] == [lines[3], lines[6]]


def test_a_chain_is_grouped_by_recipe_whatever_the_order_of_its_stages() -> None:
    groups = grouped(CHAIN)
    assert [group.name for group in groups] == ["for all", *RECIPES, "at the end"]
    assert [row.stage for row in groups[0].stages] == ["tokenizer", "quantize"]
    assert [row.stage for row in groups[2].stages] == ["prepare", "train", "export", "evaluate", "gate"]
    assert [group.status for group in groups] == ["done", "waiting", "running", *["waiting"] * 4]


def test_a_chain_shows_what_is_at_work_and_one_line_for_the_rest() -> None:
    lines = shown(CHAIN)
    assert len(lines) == 7 + 5
    assert lines[0].split() == ["▸", "for", "all", "✓", "tokenizer", "✓", "quantize"]
    assert lines[2].split() == ["▾", "context", "1", "of", "5", "done"]
    assert lines[4].split() == ["▶", "train", "running"]
    assert lines[8].split() == ["▸", "debugging", "✓", "○", "○", "○", "○", "waiting"], "words don't fit"
    wide = shown(CHAIN, (100, 24))
    assert wide[8].split() == [
        "▸",
        "debugging",
        "✓",
        "prepare",
        "○",
        "train",
        "○",
        "export",
        "○",
        "evaluate",
        "○",
        "gate",
    ]


def test_recipes_open_and_close_by_key_and_click_and_stages_are_pointed_at() -> None:
    async def body(app: WidgetHost, pilot: Pilot[None]) -> None:
        view = app.query_one(PipelineView)
        view.show(CHAIN)
        await pilot.pause()
        await pilot.click(offset=(4, 1))
        await pilot.pause()
        assert "▾ nl_to_code" in app.screen_text()
        await pilot.click(offset=(8, 3))
        (pointed,) = [message for message in app.told if isinstance(message, PipelineView.Pointed)]
        assert (pointed.row.of, pointed.row.stage) == ("nl_to_code", "train")
        view.focus()
        await pilot.press("e")
        await pilot.pause()
        assert app.screen_text().count("▾") == 7
        await pilot.press("e")
        await pilot.pause()
        assert app.screen_text().count("▾") == 1

    hosted(PipelineView(), body=body, size=(54, 40))


@pytest.mark.parametrize("height", [6, 10])
def test_it_scrolls_to_what_is_at_work(height: int) -> None:
    async def body(app: WidgetHost, pilot: Pilot[None]) -> None:
        app.query_one(PipelineView).styles.max_height = height
        late = [stage("prepare", "done", of=name) for name in "abcdefghij"] + [
            stage("train", "running", of="z"), stage("export", of="z"), stage("evaluate"), stage("x"), stage("y"),
        ]  # fmt: skip
        app.query_one(PipelineView).show(late)
        await pilot.pause()
        await pilot.pause()
        assert "▶ train" in app.screen_text()

    hosted(PipelineView(), body=body, size=(54, 24))


def test_planning_is_said_and_nothing_takes_no_room() -> None:
    async def body(app: WidgetHost, pilot: Pilot[None]) -> None:
        view = app.query_one(PipelineView)
        assert view.size.height == 0
        view.show_planning()
        await pilot.pause()
        assert app.screen_text().strip() == "planning…"
        view.show([])
        await pilot.pause()
        assert app.screen_text().strip() == ""

    hosted(PipelineView(), body=body)
