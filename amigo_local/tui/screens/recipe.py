"""RecipeScreen: a recipe as a form, and what it needs of this machine, or of another, while one changes it."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from typing import ClassVar

from textual import on, work
from textual.app import ComposeResult, SystemCommand
from textual.binding import Binding, BindingType
from textual.containers import Horizontal, Vertical
from textual.timer import Timer
from textual.widgets import Input, Static

from amigo_local.domain.errors import AmigoError, InputError
from amigo_local.domain.events import PlanMade, StageFailed
from amigo_local.engine.recipe_form import RecipeForm, recipe_forms
from amigo_local.engine.recipe_list import RecipeEntry, list_recipes, own_folders
from amigo_local.engine.saved_recipe import recipe_path
from amigo_local.presentation.plan_sentence import suggested_overrides
from amigo_local.tui.asking import Reply
from amigo_local.tui.plan_asking import PlanAsking
from amigo_local.tui.screens.ask_text import AskText
from amigo_local.tui.screens.base import AmigoScreen
from amigo_local.tui.screens.confirm import Confirm
from amigo_local.tui.widgets.field_row import field_help
from amigo_local.tui.widgets.plan_view import PlanView
from amigo_local.tui.widgets.recipe_bar import RecipeBar
from amigo_local.tui.widgets.settings_form import FormView

PLAN_AFTER_SECONDS = 0.3
"""Of quiet, while one types."""


class RecipeScreen(AmigoScreen):
    NAME = "recipe"
    DEFAULT_CSS = """
    RecipeScreen {
        #left { width: 1fr; border-right: solid $border; }
        #filter { height: 1; margin: 0 1; background: $panel; }
        #stage { height: auto; padding: 0 1; color: $text-muted; display: none; }
        #problem { height: auto; padding: 1; color: $error; display: none; }
        #help { height: 4; padding: 0 1; border-top: solid $border; color: $text-muted; }
        FormView { height: 1fr; }
        PlanView { width: 46%; max-width: 72; }
        &.-short {
            RecipeBar { margin: 0; }
            #filter { display: none; }
            #help { height: 1; border: none; }
        }
        &.-narrow {
            #sides { layout: vertical; }
            #left { width: 100%; height: 2fr; border: none; }
            PlanView { width: 100%; max-width: 100%; height: 1fr; }
        }
    }
    """
    HORIZONTAL_BREAKPOINTS = [(0, "-narrow"), (60, "-normal"), (100, "-wide")]
    VERTICAL_BREAKPOINTS = [(0, "-short"), (18, "-tall")]
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("ctrl+s", "save", "Save as"),
        Binding("r", "run(False)", "Run loop"),
        Binding("n", "run(True)", "Next step"),
        Binding("slash", "go('filter')", "Filter", key_display="/"),
        Binding("p", "pick", "Pick", show=False),
        Binding("o", "open", "Open file", show=False),
        Binding("f5", "reload", "Reload", show=False),
        Binding("m", "go('model')", "Model", show=False),
        Binding("f", "fit", "Take nearest", show=False),
        Binding("left_square_bracket", "stage(-1)", "Stage before", show=False),
        Binding("right_square_bracket", "stage(1)", "Stage after", show=False),
    ]

    def __init__(self) -> None:
        super().__init__()
        self.entries: list[RecipeEntry] = []
        self.forms: tuple[RecipeForm, ...] = ()
        self._place = 0
        """Of the stage that is looked at."""
        self._loaded: object = None
        """The choice that the forms are of, so that coming back doesn't build them anew."""
        self._loading = asyncio.Lock()
        self._plan_timer: Timer | None = None

    def body(self) -> ComposeResult:
        yield RecipeBar()
        with Horizontal(id="sides"):
            with Vertical(id="left"):
                yield Input(placeholder="/ filter settings", compact=True, max_length=200, id="filter")
                yield Static(id="stage", markup=False)
                yield Static(id="problem", markup=False)
                yield FormView()
                yield Static(id="help", markup=False)
            yield PlanView()

    def on_mount(self) -> None:
        self._plans = PlanAsking(self.session, self._show_plan)

    def shown(self) -> None:
        choice = self.session.saved.choice
        self.query_one(RecipeBar).show_asked(RecipeBar.Asked(choice.model, choice.vram, choice.ram))
        self._plans.forget()
        self._open_soon()
        self._ask_models()

    def commands(self) -> Iterable[SystemCommand]:
        yield SystemCommand("Pick a recipe", "of those that ship and your own (p)", self.action_pick)
        yield SystemCommand("Open a recipe file", "from anywhere (o)", self.action_open)
        yield SystemCommand("Reload the recipe", "after it was edited elsewhere (f5)", self.action_reload)
        yield SystemCommand("Undo all changes", "back to the recipe as it is", self.action_revert_all)
        yield SystemCommand("Take the nearest change that fits", "as the plan names it (f)", self.action_fit)

    # -- What there is to choose

    @work(group="open", exclusive=True)
    async def _open_soon(self) -> None:
        await self._open()

    async def _open(self) -> None:
        """Lists the recipes, and shows the chosen one if it isn't shown already."""
        self.entries = await asyncio.to_thread(list_recipes, own_folders(self.session.home))
        chosen = tuple(self.session.saved.choice.recipe)
        bar = self.query_one(RecipeBar)
        bar.show_recipes(self.entries, chosen)
        if not chosen:
            self._help("Choose a recipe: enter or p opens the list.")
            bar.picker.focus()
        elif self._loaded != self._mark() or not self.forms:
            await self._load()
            self.query_one(FormView).focus_first()
        else:
            self.plan_soon()

    @work(group="models", exclusive=True)
    async def _ask_models(self) -> None:
        """Names to complete the model's with: what is here, and shapes that ship for planning."""
        from amigo_local.stages._shapes import shape_names

        reply = await self.session.ask("models")
        names = [str(row[0]) for table in reply.tables for row in table.rows]
        self.query_one(RecipeBar).complete_models([*names, *shape_names()])

    def _mark(self) -> object:
        choice = self.session.saved.choice
        return (*choice.recipe, None, *choice.overrides)

    async def on_recipe_bar_picked(self, event: RecipeBar.Picked) -> None:
        event.stop()
        await self._choose(event.recipe)

    async def _choose(self, recipe: Sequence[str], overrides: Sequence[str] = ()) -> None:
        choice = self.session.saved.choice
        choice.recipe, choice.overrides = list(recipe), list(overrides)
        self._place = 0
        await self._load()
        self.query_one(FormView).focus_first()

    # -- The form

    async def _load(self) -> None:
        """Reads what is chosen; what is wrong with it takes the place of the form."""
        problem = self.query_one("#problem", Static)
        async with self._loading:  # picked twice in a row, the second is what stays
            choice = self.session.saved.choice
            recipe = choice.recipe
            try:
                self.forms = await self._read(choice.recipe, choice.overrides)
            except InputError as error:
                self.forms = ()
                problem.update(f"✗ {error.message}" + (f"\n\nhint: {error.hint}" if error.hint else ""))
                self.query_one(PlanView).show_none()
            if recipe is not choice.recipe:
                return  # whoever chose another one waits to load it
            problem.display = not self.forms
            self._place = min(self._place, max(0, len(self.forms) - 1))
            if self.forms:
                choice.overrides = list(self.forms[self._place].overrides)  # of two for one key the last
            self._loaded = self._mark()
            await self._show_stage()
        self.plan_soon()

    async def _read(self, recipe: Sequence[str], overrides: Sequence[str]) -> tuple[RecipeForm, ...]:
        """Changes that the recipe no longer takes are dropped, and that is said."""
        try:
            return await asyncio.to_thread(recipe_forms, recipe, overrides)
        except InputError as error:
            if not overrides:
                raise
            forms = await asyncio.to_thread(recipe_forms, recipe)
            self.session.saved.choice.overrides = []
            self.amigo.show_failure(InputError(f"changes from before are dropped: {error.message}", error.hint))
            return forms

    async def _show_stage(self) -> None:
        form = self.forms[self._place] if self.forms else None
        await self.query_one(FormView).show(form)
        line = self.query_one("#stage", Static)
        line.display = len(self.forms) > 1
        if form:
            self._help(form.settings.summary)
            line.update(
                f"stage {self._place + 1} of {len(self.forms)}: {form.settings.name} ([ and ] go to others);"
                " changes hold for all stages"
            )

    async def action_stage(self, by: int) -> None:
        if len(self.forms) < 2:
            return
        self._place = (self._place + by) % len(self.forms)
        await self._load()
        self.query_one(FormView).focus_first()

    def on_form_view_changed(self, event: FormView.Changed) -> None:
        event.stop()
        if not self.forms or event.form.loaded is not self.forms[self._place].loaded:
            return  # typed into what was shown before
        self.session.saved.choice.overrides = list(event.form.overrides)
        self.forms = (*self.forms[: self._place], event.form, *self.forms[self._place + 1 :])
        self._loaded = self._mark()
        self.plan_soon()

    def on_form_view_looked(self, event: FormView.Looked) -> None:
        event.stop()
        if event.field:
            self._help(field_help(event.field))

    @on(Input.Changed, "#filter")
    def _filter(self, event: Input.Changed) -> None:
        event.stop()
        self.query_one(FormView).filter(event.value)

    @on(Input.Submitted)
    def _written(self, event: Input.Submitted) -> None:
        event.stop()
        self.leave_field()

    def leave_field(self) -> None:
        if self.forms:
            self.query_one(FormView).focus_first()
        else:
            self.query_one(RecipeBar).picker.focus()

    def _help(self, text: str) -> None:
        self.query_one("#help", Static).update(text)

    # -- The plan

    def on_recipe_bar_asked(self, event: RecipeBar.Asked) -> None:
        event.stop()
        choice = self.session.saved.choice
        choice.model, choice.vram, choice.ram = event.model, event.vram, event.ram
        self.plan_soon()

    def plan_soon(self) -> None:
        """Once nothing more has changed for a moment."""
        if not self.forms or self._plans.is_answered:
            return
        self.query_one(PlanView).show_computing()
        if self._plan_timer:
            self._plan_timer.stop()
        self._plan_timer = self.set_timer(PLAN_AFTER_SECONDS, self._plan)

    def _plan(self) -> None:
        self.run_worker(self._plans.ask(), group="plan")

    def _show_plan(self, reply: Reply) -> None:
        view, form, made = self.query_one(PlanView), self.query_one(FormView), reply.first(PlanMade)
        if self.session.saved.choice.is_demo:
            view.say_unplanned("the demo brings its own small model: r runs it. With a model (m) it is planned too.")
        elif made:
            view.show_plan(made.plan, reply.error)
        elif reply.error:
            view.show_failure(reply.error)
        if form.form:
            form.show_problems(problems_of(form.form.keys, None if made else reply.error))

    async def action_fit(self) -> None:
        """Takes the change that the plan names as the nearest one that fits."""
        overrides = suggested_overrides(self.query_one(PlanView).suggestion)
        if overrides and self.forms:
            self.session.saved.choice.overrides += overrides
            await self._load()

    async def action_revert_all(self) -> None:
        self.session.saved.choice.overrides = []
        await self._load()

    # -- What is done with it

    async def action_run(self, next_only: bool) -> None:
        if not self.forms:
            self.amigo.show_failure(InputError("there is no recipe to run", "choose one that loads"))
            return
        self.run_worker(self._begin(next_only), group="start", exclusive=True)

    async def _begin(self, next_only: bool) -> None:
        try:
            await self.session.run_chosen(next_only=next_only)
        except AmigoError as error:
            self.amigo.show_failure(error)
        else:
            self.amigo.action_show_screen("loop")

    def action_save(self) -> None:
        if self.forms:
            self.run_worker(self._save(), group="save", exclusive=True)

    async def _save(self) -> None:
        home = self.session.home
        text = await self.app.push_screen_wait(
            AskText("Save these settings as a recipe of your own", f"a name (in {home / 'recipes'}), or a path")
        )
        if not text:
            return
        path, choice = recipe_path(text, home), self.session.saved.choice
        replace = path.exists()
        if replace and not await self.app.push_screen_wait(Confirm(f"{path} is there already.", "Replace it")):
            return
        saving = {"action": "save", "recipe": choice.recipe, "overrides": choice.overrides}
        reply = await self.session.ask("recipes", saving | {"out": str(path), "replace": replace})
        if reply.error:
            self.amigo.show_failure(reply.error)
            return
        self.notify(f"saved: {path}", markup=False)
        choice.recipe, choice.overrides = [str(path)], []
        await self._open()

    async def action_reload(self) -> None:
        """Reads the files again: somebody may have mended one."""
        self._loaded = None
        self._plans.forget()
        await self._open()

    def action_open(self) -> None:
        self.run_worker(self._open_file(), group="save", exclusive=True)

    async def _open_file(self) -> None:
        text = await self.app.push_screen_wait(AskText("Open a recipe", "the path of a YAML file, or a shipped name"))
        if text:
            await self._choose((text,))
            await self._open()

    def action_pick(self) -> None:
        self.query_one(RecipeBar).pick()

    def action_go(self, name: str) -> None:
        field = self.query_one(f"#{name}")
        field.display = True  # a small terminal has no room for it until it is used
        field.focus()


def problems_of(keys: Sequence[str], failure: StageFailed | None) -> dict[str, str]:
    """The settings that a refusal names, with it."""
    if failure is None:
        return {}
    return {key: failure.message for key in keys if "." in key and f"{key} " in f"{failure.message} ".replace(":", " ")}


SCREEN = RecipeScreen
