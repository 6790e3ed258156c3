"""The form of a recipe, or of one stage of a chain, as it stands with some flags."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from amigo_local.domain.recipe import Recipe
from amigo_local.engine.recipe_chain import load_chain
from amigo_local.engine.recipe_file import TABLES, with_absolute_paths
from amigo_local.engine.settings_form import SettingsForm, settings_form, value_at
from amigo_local.engine.settings_tree import origins, parse_override

RecipeForm = SettingsForm[Recipe]


def recipe_forms(texts: Sequence[str], overrides: Sequence[str] = ()) -> tuple[RecipeForm, ...]:
    """One for each stage; overrides are what is changed, and hold for all stages.

    Raises InputError as loading does, but not for stages that disagree: that may be what somebody is about to mend.
    """
    # One entry of a table is no whole value, and may mean another whole in each stage: it counts as loaded.
    kept = tuple(text for text in overrides if _key(text).split(".")[0] in TABLES and "." in _key(text))
    plain, changed = load_chain(texts, kept, agreed=False), load_chain(texts, overrides, agreed=False)
    named = _named([text for text in overrides if text not in kept])
    alone = len(plain.stages) == 1
    forms = []
    for stage, as_changed in zip(plain.stages, changed.stages, strict=True):
        form = replace(settings_form(stage.recipe, stage.origins, _settled), alone=alone, kept=kept)
        if not alone:  # two stages can't have one name
            form = replace(form, fields=tuple(field for field in form.fields if field.key != "name"))
        for field in form.fields:
            if field.key in named or any(name.startswith(f"{field.key}.") for name in named):
                form = form.put(field.key, value_at(as_changed.recipe, field.key))
        forms.append(form)
    return tuple(forms)


def _named(overrides: Sequence[str]) -> set[str]:
    """Keys that flags give a value to."""
    trees = [parse_override(text) for text in overrides]
    leaves = {key for tree in trees for key in origins(tree)}
    return leaves | {_key(text) for text in overrides}


def _key(override: str) -> str:
    return override.partition("=")[0].strip()


def _settled(recipe: Recipe) -> Recipe:
    """Paths that are typed are relative to where the person is, as those of --set."""
    return with_absolute_paths(recipe, Path.cwd(), Path.cwd())
