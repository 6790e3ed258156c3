"""Tables that are sorted, filtered and replaced under the cursor."""

from __future__ import annotations

import random
import time

import pytest
from textual.pilot import Pilot
from textual.widgets import Static

from amigo_local.domain.events import Column, Table
from amigo_local.tui.widgets.row_list import RowList
from amigo_local.tui.widgets.table_view import FilterBox, Row, TableView
from tests.support.widget_host import WidgetHost, hosted

pytestmark = pytest.mark.usefixtures("garbage_of_others_stays")

COLUMNS = (Column("name"), Column("size", "bytes"), Column("loss", "number"), Column("note"))
ROWS: tuple[Row, ...] = (
    ("banana", 9 << 30, 0.5, "yellow"),
    ("Apple", 10 << 20, None, "red or green"),
    ("cherry", 2048, 12.0, "a very long text about cherries " * 4),
    ("date", None, 2.5, "brown [b]sweet[/b]\nand sticky"),
)


def table(*rows: Row) -> Table:
    return Table("fruit", COLUMNS, rows or ROWS)


def names(view: TableView) -> list[object]:
    return [row[0] for row in view.shown]


def viewed(body: object, view: TableView | None = None, size: tuple[int, int] = (80, 14)) -> None:
    async def begin(app: WidgetHost, pilot: Pilot[None]) -> None:
        view = app.query_one(TableView)
        view.show(table())
        view.focus_rows()
        await pilot.pause()
        await body(app, pilot, view)  # type: ignore[operator]

    hosted(view or TableView("name"), body=begin, size=size)


def test_numbers_are_right_aligned_and_texts_left() -> None:
    async def body(app: WidgetHost, pilot: Pilot[None], view: TableView) -> None:
        head, *lines = app.screen_text().splitlines()
        end = head.index("size") + 4
        assert [line[:end].rstrip() for line in lines[:4]] == [
            " banana   9.0 GiB", " Apple   10.0 MiB", " cherry   2.0 KiB", " date           —",
        ]  # fmt: skip
        assert head[:end].strip().split() == ["name", "size"]

    viewed(body)


def test_sorting_knows_numbers_and_puts_what_isnt_known_last_either_way() -> None:
    async def body(app: WidgetHost, pilot: Pilot[None], view: TableView) -> None:
        assert names(view) == ["banana", "Apple", "cherry", "date"], "the table's own order at first"
        await pilot.press("o")
        assert names(view) == ["Apple", "banana", "cherry", "date"], "texts without regard to case"
        await pilot.press("o")
        assert names(view) == ["banana", "Apple", "cherry", "date"] and "size ▼" in app.screen_text()
        await pilot.press("o")
        assert names(view) == ["cherry", "date", "banana", "Apple"], "12 is more than 2.5"
        await pilot.press("O")
        await pilot.pause()
        assert names(view) == ["banana", "date", "cherry", "Apple"] and "loss ▲" in app.screen_text()

    viewed(body)


def test_a_click_on_a_heading_sorts_and_one_on_a_row_goes_there_and_chooses() -> None:
    async def body(app: WidgetHost, pilot: Pilot[None], view: TableView) -> None:
        place = app.screen_text().splitlines()[0].index("loss")
        await pilot.click(RowList, offset=(place, 0))
        assert names(view)[0] == "cherry"
        assert view.current and view.current[0] == "banana", "the cursor stays on its row"
        await pilot.click(RowList, offset=(2, 2))
        assert (view.rows.cursor, chosen(app)) == (1, [])
        await pilot.click(RowList, offset=(2, 2))
        assert chosen(app) == [ROWS[3]]
        await pilot.click(RowList, offset=(2, 9))
        assert len(chosen(app)) == 1, "there is no row"

    viewed(body)


def chosen(app: WidgetHost) -> list[Row]:
    return [message.row for message in app.told if isinstance(message, TableView.RowChosen)]


def test_keys_move_and_choose() -> None:
    async def body(app: WidgetHost, pilot: Pilot[None], view: TableView) -> None:
        await pilot.press("down", "enter", "end", "enter", "up", "enter", "home", "up", "enter")
        await pilot.pause()
        assert [row[0] for row in chosen(app)] == ["Apple", "date", "cherry", "banana"]
        pointed = [message.row[0] for message in app.told if isinstance(message, TableView.RowPointed)]
        assert pointed[-4:] == ["Apple", "date", "cherry", "banana"]

    viewed(body)


def test_the_filter_wants_all_words_and_leaves_by_escape_or_enter() -> None:
    async def body(app: WidgetHost, pilot: Pilot[None], view: TableView) -> None:
        box = view.query_one(FilterBox)
        assert not box.display
        await pilot.press("slash", *"RED ap")
        await pilot.pause()
        assert names(view) == ["Apple"]
        await pilot.press("enter")
        await pilot.pause()
        assert box.display and view.rows.has_focus and names(view) == ["Apple"]
        await pilot.press("enter")
        await pilot.pause()
        assert chosen(app) == [ROWS[1]]
        await pilot.press("slash", *" zzz")
        await pilot.pause()
        assert "no row has all of these words" in app.screen_text() and view.current is None
        await pilot.press("escape")
        await pilot.pause()
        assert not box.display and view.rows.has_focus and len(names(view)) == 4

    viewed(body)


def test_newer_rows_change_neither_cursor_nor_sorting_nor_filter() -> None:
    async def body(app: WidgetHost, pilot: Pilot[None], view: TableView) -> None:
        await pilot.press("o", "down")
        assert view.current and view.current[0] == "cherry"
        await pilot.press("slash", "e", "enter")
        newer = (("aardvark", 1, 1.0, "e"), ("cherry", 4096, 1.0, "e"), *ROWS[:2], ("kiwi", 1, 1.0, "-"))
        view.show(table(*newer))
        await pilot.pause()
        assert names(view) == ["aardvark", "Apple", "banana", "cherry"]
        assert view.current == newer[1]
        view.show(table(*newer[2:]))
        assert names(view) == ["Apple", "banana"] and view.current and view.current[0] == "banana", "it went"
        assert view.point_at("Apple") and not view.point_at("kiwi")
        assert view.current == ROWS[1] and view.value(view.current, "note") == "red or green"

    viewed(body)


def test_a_long_text_is_cut_in_its_cell_and_whole_below() -> None:
    async def body(app: WidgetHost, pilot: Pilot[None], view: TableView) -> None:
        detail = view.query_one(".detail", Static)
        assert not detail.display
        await pilot.press("down", "down")
        await pilot.pause()
        line = app.screen_text().splitlines()[3]
        assert "a very long text" in line and line.rstrip().endswith("…") and len(line) <= 80
        assert str(detail.content) == "note: " + " ".join(["a very long text about cherries"] * 4)
        await pilot.press("down")
        await pilot.pause()
        assert not detail.display and "brown [b]sweet[/b] and sticky" in app.screen_text()
        await pilot.press("up")
        await pilot.resize_terminal(240, 14)
        await pilot.pause()
        await pilot.pause()
        assert not detail.display

    viewed(body)


def test_where_it_is_narrow_it_scrolls_sideways() -> None:
    async def body(app: WidgetHost, pilot: Pilot[None], view: TableView) -> None:
        for width, scrolls in ((10, True), (24, True), (40, False)):
            await pilot.resize_terminal(width, 14)
            await pilot.pause()
            assert max(len(line) for line in app.screen_text().splitlines()) <= width
            before = app.screen_text()
            await pilot.press("right", "right", "right")
            await pilot.pause()
            assert (app.screen_text() != before) is scrolls

    viewed(body)


def test_nothing_is_said_and_no_row_is_chosen() -> None:
    async def body(app: WidgetHost, pilot: Pilot[None], view: TableView) -> None:
        view.clear()
        await pilot.pause()
        assert "no fruit yet" in app.screen_text()
        await pilot.press("enter", "o", "down", "O")
        assert not chosen(app) and view.current is None

    viewed(body, TableView("name", empty="no fruit yet"))


def test_five_thousand_rows_stay_quick() -> None:
    """A screen that is busy for longer than 0.05 s answers a key late; the allowance is for a busy machine."""
    rng = random.Random(3)
    rows = tuple((f"row {i}", rng.randrange(1 << 34), rng.random(), f"group-{i % 97}-") for i in range(5000))

    async def body(app: WidgetHost, pilot: Pilot[None], view: TableView) -> None:
        def seconds(action: object) -> float:
            began = time.perf_counter()
            action()  # type: ignore[operator]
            return time.perf_counter() - began

        view.show(table(*rows))
        newer = (("row 0", 1, 0.5, "x"), *rows[1:])
        assert min(seconds(lambda: view.show(table(*rows))), seconds(lambda: view.show(table(*newer)))) < 0.1
        assert min(seconds(view.action_sort_next) for _ in range(4)) < 0.1
        box = view.query_one(FilterBox)
        box.value = "GROUP-5-"
        await pilot.pause()
        assert len(view.shown) == 52
        assert seconds(lambda: view._arrange(view.current, 0)) < 0.1
        box.value = ""
        await pilot.pause()
        await pilot.press("end")
        await pilot.pause()
        assert view.rows.cursor == 4999 and str(view.shown[-1][0]) in app.screen_text()

    viewed(body)
