"""The form as a widget: typing, refusals below the field, stepping, reverting, folding, filtering."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import pytest
from textual.app import App, ComposeResult
from textual.pilot import Pilot
from textual.widgets import Input, TextArea

from amigo_local.engine.recipe_form import recipe_forms
from amigo_local.engine.settings_form import SettingsForm
from amigo_local.tui.widgets.field_row import FieldEditor, FieldRow
from amigo_local.tui.widgets.settings_form import FormView, SectionHeader
from tests.support.tui_driving import headless


class Host(App[None]):
    def __init__(self, recipe: str, overrides: Sequence[str] = ()) -> None:
        super().__init__()
        self.recipe, self.overrides = recipe, overrides
        self.changes: list[SettingsForm[Any]] = []

    def compose(self) -> ComposeResult:
        yield FormView()

    async def on_mount(self) -> None:
        await self.view.show(recipe_forms((self.recipe,), self.overrides)[0])

    @property
    def view(self) -> FormView:
        return self.query_one(FormView)

    def on_form_view_changed(self, event: FormView.Changed) -> None:
        self.changes.append(event.form)

    def row(self, key: str) -> FieldRow:
        return next(row for row in self.query(FieldRow) if row.field.key == key)

    def text(self, key: str) -> str:
        return str(self.row(key).render())

    @property
    def problem(self) -> str:
        (editor,) = self.query(FieldEditor)
        return str(editor.query_one("Static").render())

    @property
    def overrides_now(self) -> tuple[str, ...]:
        assert self.view.form
        return self.view.form.overrides


Body = Callable[[Host, Pilot[None]], Awaitable[None]]


def in_app(host: Host, body: Body, size: tuple[int, int] = (80, 40)) -> None:
    async def run() -> None:
        async with headless(host, size) as pilot:
            await pilot.pause()
            await body(host, pilot)

    asyncio.run(run())


async def edit(host: Host, pilot: Pilot[None], key: str) -> None:
    host.row(key).focus()
    await pilot.press("enter")
    await pilot.pause()


def test_a_value_counts_as_soon_as_it_is_valid_and_what_is_wrong_is_said_below() -> None:
    async def body(host: Host, pilot: Pilot[None]) -> None:
        await edit(host, pilot, "train.lora.rank")
        await pilot.press("backspace", "backspace")
        assert "expected a whole number, got nothing" in host.problem and host.changes == []
        await pilot.press("0")
        assert "found 0: expected a whole number >= 1" in host.problem and host.overrides_now == ()
        await pilot.press("enter")  # stays open: nothing that was typed is lost
        assert host.query_one(FieldEditor).query_one(Input).value == "0"
        await pilot.press("backspace", "8")
        assert host.problem == "" and host.overrides_now == ("train.lora.rank=8",)
        assert host.text("train.lora.rank").split() == ["●", "rank", "8", "was", "16"]
        await pilot.press("enter")
        await pilot.pause()
        assert not host.query(FieldEditor) and host.focused is host.row("train.lora.rank")
        await pilot.press("u")
        assert host.overrides_now == () and host.text("train.lora.rank").split() == ["rank", "16"]

    in_app(Host("demo"), body)


@pytest.mark.parametrize(("recipe", "before"), [("demo", ()), ("demo", ("train.epochs=2",)), ("all", ())])
def test_escape_leaves_it_as_it_was(recipe: str, before: tuple[str, ...]) -> None:
    async def body(host: Host, pilot: Pilot[None]) -> None:
        start = host.overrides_now
        await edit(host, pilot, "train.epochs")
        await pilot.press("end", "7")
        assert host.overrides_now != start
        await pilot.press("x", "escape")
        await pilot.pause()
        assert host.overrides_now == start and not host.query(FieldEditor)
        await edit(host, pilot, "train.epochs")
        await pilot.press("escape")  # nothing typed: nothing changed, in a chain neither
        await pilot.pause()
        assert host.overrides_now == start

    in_app(Host(recipe, before), body)


def test_yes_and_no_and_choices_are_stepped_through() -> None:
    async def body(host: Host, pilot: Pilot[None]) -> None:
        host.row("train.packing").focus()
        await pilot.press("enter")
        assert host.overrides_now == ("train.packing=false",)
        host.row("train.scheduler").focus()
        await pilot.press("space", "space")
        assert host.overrides_now[-1] == "train.scheduler=constant"
        await pilot.press("space")
        assert host.overrides_now == ("train.packing=false",)  # around, back at cosine
        host.row("model.dtype").focus()
        for _ in range(4):
            await pilot.press("space")
        assert host.text("model.dtype").split() == ["dtype", "none"]  # none is in the round

    in_app(Host("demo"), body)


def test_a_misspelt_choice_is_told_the_nearest() -> None:
    async def body(host: Host, pilot: Pilot[None]) -> None:
        await edit(host, pilot, "train.method")
        await pilot.press(*"sf")  # in the place of what was there
        assert "did you mean sft?" in host.problem and "one of: sft, dpo" in host.problem

    in_app(Host("demo"), body)


def test_data_sources_are_edited_as_yaml_on_several_lines() -> None:
    async def body(host: Host, pilot: Pilot[None]) -> None:
        await edit(host, pilot, "data.sources")
        area = host.query_one(TextArea)
        assert area.text == "- stdlib: all"
        area.move_cursor(area.document.end)
        await pilot.press("enter", *"  limit: 0")
        assert host.problem.startswith("line 2: data.sources[0].limit: found 0")
        await pilot.press("5")  # 05 is five to YAML 1.1
        assert host.problem == "" and host.overrides_now == ("data.sources=[{stdlib: all, limit: 5}]",)
        area.text = "x" * 30_000
        await pilot.pause()
        assert "30,000 characters are too many" in host.problem
        await pilot.press("escape")
        await pilot.pause()
        assert host.overrides_now == ()

    in_app(Host("demo"), body)


def test_sections_fold_and_the_filter_looks_into_all_of_them() -> None:
    async def body(host: Host, pilot: Pilot[None]) -> None:
        headers = {header.title: header for header in host.query(SectionHeader)}
        assert [*headers][:5] == ["recipe", "model", "data", "data.difficulty", "train"] and "gate" in headers
        assert not host.row("train.memory.slots").display and host.row("train.epochs").display
        headers["train"].focus()
        await pilot.press("enter")
        assert not host.row("train.epochs").display
        host.view.filter("hidden recomputing")  # in its help
        await pilot.pause()
        shown = [row.field.key for row in host.query(FieldRow) if row.display]
        assert shown == ["train.memory.offload_checkpoints"]
        assert [title for title, header in headers.items() if header.display] == ["train.memory"]
        host.view.filter("")
        await pilot.pause()
        assert all(header.display for header in headers.values()) and not host.row("train.memory.slots").display

    in_app(Host("demo"), body)


def test_up_and_down_go_through_what_shows() -> None:
    async def body(host: Host, pilot: Pilot[None]) -> None:
        host.view.focus_first()
        await pilot.press("down", "down")
        assert isinstance(host.focused, SectionHeader) and host.focused.title == "model"
        await pilot.press("up")
        assert host.focused is host.row("summary")
        await pilot.press("up", "up", "up", "up")
        assert isinstance(host.focused, SectionHeader) and host.focused.title == "recipe"

    in_app(Host("demo"), body)


def test_long_and_hostile_texts_stay_on_their_line() -> None:
    async def body(host: Host, pilot: Pilot[None]) -> None:
        assert host.row("summary").size.height == 1
        assert "[bold]not markup" in host.text("summary")
        host.view.show_problems({"summary": "no [such] thing"})
        await pilot.pause()
        assert host.text("summary").startswith("✗") and host.row("summary").size.height == 2

    in_app(Host("demo", ("summary='[bold]not markup " + "x" * 500 + "'",)), body, (40, 10))


def test_another_stage_keeps_the_rows_and_shows_its_values() -> None:
    async def body(host: Host, pilot: Pilot[None]) -> None:
        rows = list(host.query(FieldRow))
        await host.view.show(recipe_forms(("all",))[1])
        assert list(host.query(FieldRow)) == rows
        assert host.text("data.max_length_tokens").split() == ["max_length_tokens", "8192"]
        await host.view.show(None)
        assert host.view.form is None and not host.query(FieldRow)

    in_app(Host("all"), body)
