"""The Recipe screen against the real `plan`, with a shape that ships: no weights are needed."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from unittest.mock import patch

import pytest
from textual.pilot import Pilot
from textual.widgets import Input, Select, Static

from amigo_local.domain.plan import Plan
from amigo_local.engine.recipe_chain import load_chain
from amigo_local.tui.app import AmigoApp
from amigo_local.tui.saved_state import RecipeChoice, read_state
from amigo_local.tui.screens.ask_text import AskText
from amigo_local.tui.screens.confirm import Confirm
from amigo_local.tui.screens.recipe import RecipeScreen
from amigo_local.tui.session import Session
from amigo_local.tui.widgets.field_row import FieldRow
from amigo_local.tui.widgets.plan_view import PlanView
from amigo_local.tui.widgets.settings_form import FormView
from tests.support.tiny_run import write_tiny_run
from tests.support.tui_driving import OFFLINE, headless, until

LAPTOP = RecipeChoice(recipe=["demo"], model="gemma-3-12b", vram="6GiB", ram="16GiB")


class RecipeApp(AmigoApp):
    """Begins here, and doesn't measure the machine."""

    DEFAULT_MODE = "recipe"

    def _measure(self) -> None:
        return

    @property
    def recipe(self) -> RecipeScreen:
        return next(screen for screen in self.screen_stack if isinstance(screen, RecipeScreen))

    def row(self, key: str) -> FieldRow:
        return next(row for row in self.recipe.query(FieldRow) if row.field.key == key)

    def said(self, name: str) -> str:
        return str(self.recipe.query_one(f"#{name}", Static).render())

    @property
    def view(self) -> PlanView:
        return self.recipe.query_one(PlanView)


Body = Callable[[RecipeApp, Pilot[None]], Awaitable[None]]


def on_screen(home: Path, choice: RecipeChoice, body: Body, size: tuple[int, int] = (120, 40)) -> None:
    async def run() -> None:
        session = Session(home, OFFLINE)
        session.saved.choice = choice
        app = RecipeApp(session)
        try:
            async with headless(app, size) as pilot:
                await body(app, pilot)
        finally:
            await session.close()

    asyncio.run(run())


async def planned(app: RecipeApp, pilot: Pilot[None]) -> None:
    """Until the plan that shows is of what is chosen."""
    await until(pilot, lambda: app.is_mounted and app.recipe.query(PlanView) and app.recipe.forms)
    await until(pilot, lambda: not app.view.has_class("-computing") and app.said("verdict")[0] in "✓✗○")


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "here" / "recipes").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path / "home"


def test_the_plan_follows_what_one_types_and_marks_what_contradicts_it(home: Path) -> None:
    async def body(app: RecipeApp, pilot: Pilot[None]) -> None:
        await planned(app, pilot)
        assert app.said("verdict") == "✓ fits: streams 12 of 48 layers"
        first = app.view.plan
        assert first and first.memory and app.said("about").startswith("demo on gemma-3-12b\nabout ")
        assert "memory.resident_layers 36 of 48 instead of 48 of 48" in app.said("levers")
        app.row("data.max_length_tokens").focus()
        computed: list[tuple[bool, Plan | None]] = []

        def computing(view: PlanView) -> None:
            shows_computing(view)
            computed.append((view.has_class("-computing"), view.plan))

        shows_computing = PlanView.show_computing
        with patch.object(PlanView, "show_computing", computing):
            await pilot.press("enter", *"204")
        assert computed[0] == (True, first)  # the old one stays, dimmed
        await pilot.press("8")
        await planned(app, pilot)
        second = app.view.plan
        assert second and second.memory and second.memory.max_length_tokens == 2048
        assert second.memory.streamed_layers > 12 and not app.view.has_class("-old")
        await pilot.press("escape")
        await planned(app, pilot)
        assert app.said("verdict") == "✓ fits: streams 12 of 48 layers"
        assert app.session.saved.choice.overrides == []
        app.row("train.keep_best").focus()
        help = "train.keep_best: bool; default false; from built-in default\nWrite the adapter with the lowest"
        await until(pilot, lambda: app.said("help").startswith(help))
        await pilot.press("enter")
        await until(pilot, lambda: "train.keep_best needs evaluations" in app.said("verdict"))
        assert "needs evaluations" in str(app.row("train.keep_best").render())
        await pilot.press("u")
        await until(pilot, lambda: app.said("verdict").startswith("✓ fits"))
        assert "needs evaluations" not in str(app.row("train.keep_best").render())

    on_screen(home, LAPTOP, body, (80, 24))


def test_what_does_not_fit_is_said_with_the_nearest_change_which_one_key_takes(home: Path) -> None:
    choice = RecipeChoice(
        recipe=["laptop"], model="gemma-3-27b", vram="6GiB", ram="16GiB", overrides=["data.max_length_tokens=2048"]
    )

    async def body(app: RecipeApp, pilot: Pilot[None]) -> None:
        await planned(app, pilot)
        assert app.said("verdict").startswith("✗ doesn't fit: RAM: training needs 15.6 GiB, there are 14.9 GiB")
        assert "nearest: --set data.max_length_tokens=1024 would fit" in app.said("verdict")
        assert app.view.plan and app.view.plan.memory
        app.row("name").focus()
        await pilot.press("f")
        await until(pilot, lambda: app.session.saved.choice.overrides == [])  # it is the recipe's own value
        await until(pilot, lambda: app.said("verdict").startswith("✓ fits: streams"))
        app.recipe.query_one("#vram", Input).value = "6"
        await until(pilot, lambda: "--vram 6 is 6 bytes" in app.said("verdict"))
        assert app.view.has_class("-old")  # the plan below is of other settings

    on_screen(home, choice, body)


def test_a_recipe_with_an_error_shows_it_and_can_be_mended_or_left(home: Path) -> None:
    own = Path("recipes/own.yaml").absolute()
    own.write_text("train:\n  epochs: many\n")

    async def body(app: RecipeApp, pilot: Pilot[None]) -> None:
        await until(pilot, lambda: app.is_mounted and app.recipe.query("#problem") and app.said("problem"))
        assert "recipes/own.yaml:2: train.epochs: found 'many': expected `float`" in app.said("problem")
        assert not app.recipe.query(FieldRow) and app.said("verdict") == "✗ no plan: the recipe has an error"
        await pilot.press("r")
        await until(pilot, lambda: app.failure and app.failure.message == "there is no recipe to run")
        picker = app.recipe.query_one("#recipe", Select)
        assert "✗ own.yaml" in [str(label) for label, _ in picker._options]
        picker.value = ("demo",)
        await until(pilot, lambda: app.said("about").startswith("demo on gemma-3-1b"))
        assert not app.recipe.query_one("#problem").display
        picker.value = (str(own),)
        await until(pilot, lambda: app.recipe.query_one("#problem").display and not app.recipe.query(FieldRow))
        own.write_text("data: {sources: [{stdlib: all}]}\n")
        await pilot.press("f5")
        await until(pilot, lambda: app.said("about").startswith("own on gemma-3-1b"))
        assert app.focused is app.row("name")
        # What another screen chooses, and changes that the recipe doesn't take, are taken up and said.
        app.session.saved.choice.model, app.session.saved.choice.overrides = "gemma-3-4b", ["train.gone=1"]
        app.recipe.shown()
        await until(pilot, lambda: app.said("about").startswith("own on gemma-3-4b"))
        assert app.recipe.query_one("#model", Input).value == "gemma-3-4b"
        assert app.failure and "changes from before are dropped" in app.failure.message
        assert "train.gone" in app.failure.message and app.session.saved.choice.overrides == []

    on_screen(home, RecipeChoice(recipe=[str(own)], model="gemma-3-1b"), body, (80, 24))


def test_changes_of_a_chain_hold_for_all_of_its_stages(home: Path) -> None:
    async def body(app: RecipeApp, pilot: Pilot[None]) -> None:
        await until(pilot, lambda: app.is_mounted and app.recipe.query(FieldRow) and app.said("stage"))
        assert "stage 1 of 5: stage1_nl_to_code" in app.said("stage") and "hold for all stages" in app.said("stage")
        app.row("train.effective_batch").focus()
        await pilot.press("enter", "4", "enter", "right_square_bracket")
        await until(pilot, lambda: "stage 2 of 5: stage2_context" in app.said("stage"))
        assert str(app.row("train.effective_batch").render()).split()[:3] == ["●", "effective_batch", "4"]
        assert str(app.row("data.max_length_tokens").render()).split() == ["max_length_tokens", "8192"]
        await pilot.press("left_square_bracket", "left_square_bracket")
        await until(pilot, lambda: "stage 5 of 5" in app.said("stage"))
        assert app.session.saved.choice.overrides == ["train.effective_batch=4"]

    on_screen(home, RecipeChoice(recipe=["all"], model="gemma-3-1b"), body, (80, 24))


def test_saving_makes_a_recipe_of_ones_own_and_goes_on_with_it(home: Path) -> None:
    async def save_as(app: RecipeApp, pilot: Pilot[None]) -> None:
        await pilot.press("ctrl+s")
        await until(pilot, lambda: isinstance(app.screen, AskText))
        await pilot.press(*"mine", "enter")

    async def body(app: RecipeApp, pilot: Pilot[None]) -> None:
        path = home / "recipes" / "mine.yaml"
        await until(pilot, lambda: app.is_mounted and app.recipe.query(FieldRow))
        await save_as(app, pilot)
        await until(pilot, lambda: app.session.saved.choice.recipe == [str(path)])
        assert app.session.saved.choice.overrides == []
        assert load_chain((str(path),)).stages[0].recipe.train.epochs == 3.0
        await until(pilot, lambda: app.row("train.epochs").field.origin.startswith(f"{path}:"))
        assert app.recipe.query_one("#recipe", Select).value == (str(path),)
        await save_as(app, pilot)  # again under that name: it asks first
        await until(pilot, lambda: isinstance(app.screen, Confirm))
        await pilot.press("escape")
        await until(pilot, lambda: isinstance(app.screen, RecipeScreen))

    on_screen(home, RecipeChoice(recipe=["demo"], model="gemma-3-1b", overrides=["train.epochs=3"]), body)


def test_what_is_chosen_is_there_after_a_restart(home: Path) -> None:
    async def body(app: RecipeApp, pilot: Pilot[None]) -> None:
        await until(pilot, lambda: app.is_mounted and app.recipe.query("#recipe") and app.recipe.entries)
        assert app.said("verdict") == "choose a recipe and a model to see what they need"
        app.recipe.query_one("#recipe", Select).value = ("demo",)
        await planned(app, pilot)
        assert app.said("verdict").startswith("○ the demo brings its own small model: r runs it")
        app.recipe.query_one("#recipe", Select).clear()  # the line that says `choose`
        await until(pilot, lambda: app.recipe.query_one("#recipe", Select).value == ("demo",))
        app.recipe.query_one("#model", Input).value = "gemma-3-1b"
        await until(pilot, lambda: app.said("verdict").startswith("✓ fits"))
        app.row("train.packing").focus()
        await pilot.press("space")

    on_screen(home, RecipeChoice(), body)
    kept = read_state(home).choice
    assert (kept.recipe, kept.model, kept.overrides) == (["demo"], "gemma-3-1b", ["train.packing=false"])


def test_the_smallest_terminal_still_shows_settings_and_whether_they_fit(home: Path) -> None:
    async def body(app: RecipeApp, pilot: Pilot[None]) -> None:
        await planned(app, pilot)
        form = app.recipe.query_one(FormView).region
        assert form.height >= 3 and form.right <= 40 and app.view.region.right <= 40
        assert app.view.region.height >= 1 and app.view.region.bottom <= 9
        await pilot.resize_terminal(120, 40)
        await until(pilot, lambda: app.recipe.query_one(FormView).region.height > 20)
        assert app.recipe.query_one(FormView).region.right <= app.view.region.x

    on_screen(home, LAPTOP, body, (40, 10))


@pytest.mark.slow
def test_the_next_step_is_started_from_here_and_shown_on_the_loop(home: Path, tmp_path: Path) -> None:
    async def body(app: RecipeApp, pilot: Pilot[None]) -> None:
        await planned(app, pilot)
        await pilot.press("n")
        await until(pilot, lambda: app.current_mode == "loop")
        run = app.session.run
        assert run and app.session.live
        await until(pilot, lambda: run.exit_code is not None)
        assert [(stage.stage, stage.status) for stage in run.stages] == [("tokenizer", "done")]
        await pilot.press("3")
        await until(pilot, lambda: app.view.plan and app.view.plan.stages[0].status == "done")

    on_screen(home, RecipeChoice(recipe=[str(write_tiny_run(tmp_path))]), body)


def test_with_nothing_chosen_one_gets_out_of_every_field(home: Path) -> None:
    async def body(app: RecipeApp, pilot: Pilot[None]) -> None:
        await until(pilot, lambda: app.is_mounted and app.recipe.query("#recipe") and app.recipe.entries)
        for name in ("model", "vram", "ram", "filter"):
            app.recipe.query_one(f"#{name}", Input).focus()
            await pilot.press("escape")
            assert not isinstance(app.recipe.focused, Input)

    on_screen(home, RecipeChoice(), body)
