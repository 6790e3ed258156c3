"""recipes: which there are, what one says and where each setting comes from; saves one with changes, checks a file."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

from amigo_local.domain.artifact import Figure
from amigo_local.domain.errors import InputError
from amigo_local.domain.events import Column, Table
from amigo_local.engine.contract import Params, Stage, StageContext, StageResult, argument, option

if TYPE_CHECKING:
    from amigo_local.engine.recipe_form import RecipeForm


class RecipesParams(Params, frozen=True, kw_only=True):
    action: Annotated[Literal["ls", "show", "save", "check"], argument("ls, show, save or check.")] = "ls"
    recipe: Annotated[
        tuple[str, ...], argument("Path of a recipe, or the name of a shipped one; several make a chain.")
    ] = ()
    out: Annotated[str | None, option("save: file to write; a bare NAME: in the home folder's recipes.")] = None
    replace: Annotated[bool, option("save: over a file that is there.")] = False
    overrides: Annotated[tuple[str, ...], option("key.path=value", hidden=True)] = ()


_LISTED = (Column("recipe"), Column("stages", "count"), Column("summary"), Column("file"))
_SHOWN = (Column("key"), Column("value"), Column("origin"))


def run(params: RecipesParams, context: StageContext) -> StageResult:
    if params.action == "ls":
        return _list(context)
    if not params.recipe:
        raise InputError(f"recipes {params.action} needs a RECIPE", f"amigo-local recipes {params.action} demo")
    match params.action:
        case "show":
            return _show(params, context)
        case "save":
            return _save(params, context)
        case "check":
            return _check(params, context)


def _list(context: StageContext) -> StageResult:
    from amigo_local.engine.recipe_list import list_recipes, own_folders

    entries = list_recipes(own_folders(context.workspace.root))
    rows: list[tuple[Figure, ...]] = [
        (entry.name, None if entry.error else len(entry.stages), entry.summary or None, str(entry.path))
        for entry in entries
    ]
    context.emit(Table("Recipes", _LISTED, tuple(rows)))
    broken = [entry for entry in entries if entry.error]
    for entry in broken:
        context.note(entry.error, "warning", entry.hint)
    return StageResult({"recipes": len(entries), "broken": len(broken)})


def _show(params: RecipesParams, context: StageContext) -> StageResult:
    from amigo_local.engine.recipe_form import recipe_forms

    forms = recipe_forms(params.recipe, params.overrides)
    for form in forms:
        context.emit(Table(form.settings.name, _SHOWN, tuple(_row(form, key) for key in form.keys)))
    return StageResult({"stages": len(forms), "changed": len(forms[0].edits)})


def _row(form: RecipeForm, key: str) -> tuple[Figure, ...]:
    return key, form.text(key) or None, f"--set {key}" if key in form.edits else form.field(key).origin


def _save(params: RecipesParams, context: StageContext) -> StageResult:
    from amigo_local.engine.saved_recipe import recipe_path, save_recipes

    if params.out is None:
        raise InputError("recipes save needs a file to write", "give --out FILE, or --out NAME")
    path = recipe_path(params.out, context.workspace.root)
    saved = save_recipes(params.recipe, params.overrides, path, replace=params.replace)
    context.note(f"saved: {saved.path}", "good", f"amigo-local run {saved.path}")
    return StageResult({"path": str(saved.path), "stages": len(saved.chain.stages)})


def _check(params: RecipesParams, context: StageContext) -> StageResult:
    """Loads it, and asks what the loop asks before it makes anything. Raises InputError for what is wrong."""
    from amigo_local.engine.recipe_chain import load_chain
    from amigo_local.stages._loop import check_recipes

    recipes = [stage.recipe for stage in load_chain(params.recipe, params.overrides).stages]
    check_recipes(recipes)
    names = ", ".join(recipe.name for recipe in recipes)
    context.note(f"{names}: every setting is valid", "good")
    if without := [recipe.name for recipe in recipes if not recipe.data.sources]:
        context.note(f"{', '.join(without)}: no data source yet", "warning", "data.sources: [{stdlib: all}]")
    return StageResult({"stages": len(recipes)})


STAGE = Stage(
    "recipes",
    "List recipes, show one with origins, save one with changes, check a file.",
    RecipesParams,
    run,
    place="here",
    locks=False,
)
