"""Writes a recipe, or a chain, with changes to a file of its own that gives the same when it is loaded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from amigo_local.domain.errors import InputError
from amigo_local.engine.form_field import fields_of
from amigo_local.engine.recipe_chain import LoadedChain, load_chain
from amigo_local.engine.recipe_file import LoadedRecipe, find_recipe, read_tree
from amigo_local.engine.recipe_form import recipe_forms
from amigo_local.engine.setting_text import plain, yaml_text
from amigo_local.engine.settings_form import value_at
from amigo_local.engine.settings_tree import Leaf
from amigo_local.engine.workspace import fsync_directory, write_synced

_BASE = "recipes/base.yaml:"


@dataclass(frozen=True)
class Saved:
    path: Path
    chain: LoadedChain
    """As loaded from there."""


def recipe_path(text: str, home: Path) -> Path:
    """Where a person means to save: a bare name lies in the home folder's recipes; the ending may be left out."""
    path = Path(text).expanduser()
    if path.suffix not in (".yaml", ".yml"):
        path = path.with_name(f"{path.name}.yaml")
    return home / "recipes" / path if path.name == f"{text}.yaml" else path.absolute()


def save_recipes(texts: Sequence[str], overrides: Sequence[str], path: Path, *, replace: bool = False) -> Saved:
    """The new recipe is called as the file is, unless an override gives a `name`.

    Paths of data are written absolute, so they stay true wherever the file lies. Raises InputError for a file that is
    there already (unless `replace`), and for what can't be written so that it stays the same.
    """
    path = path.expanduser().absolute()
    wanted = load_chain(texts, overrides)
    alone = len(wanted.stages) == 1
    if path.exists() and not replace:
        raise InputError(f"{path} is there already", "save under another name, or replace it (--replace)")
    if not alone and path.resolve() in wanted.files:
        raise InputError(f"{path} is part of what is saved: the chain would name itself", "save under another name")
    tree = _recipe_tree(wanted.stages[0], path.stem) if alone else _chain_tree(texts, overrides, path.parent)
    changed = f"; changed: {', '.join(text.partition('=')[0] for text in overrides)}" if overrides else ""
    header = f"# Saved from {', '.join(_shown(text) for text in texts)}{changed}.\n"
    waiting = path.with_name(f"{path.name}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_synced(waiting, (header + yaml_text(tree)).encode())
        try:
            _check_same(wanted, load_chain((str(waiting),)), renamed=alone)
        except InputError:
            waiting.unlink()
            raise
        waiting.replace(path)
        fsync_directory(path.parent)
    except OSError as error:
        raise InputError(f"{path} can't be written: {error.strerror or error}", "save it elsewhere") from error
    return Saved(path, load_chain((str(path),)))


def _recipe_tree(loaded: LoadedRecipe, stem: str) -> dict[str, Any]:
    """What isn't a built-in default or base.yaml's, section by section."""
    tree: dict[str, Any] = {"name": stem}
    for field in fields_of(loaded.recipe, loaded.origins):
        at = [origin for key, origin in loaded.origins.items() if key == field.key or key.startswith(f"{field.key}.")]
        own = any(not origin.startswith(_BASE) for origin in at) or (not at and field.value != field.default)
        if own and (field.key != "name" or loaded.origins.get("name", "").startswith("--set")):
            _put(tree, field.key.split("."), plain(field.value))
    return tree


def _chain_tree(texts: Sequence[str], overrides: Sequence[str], folder: Path) -> dict[str, Any]:
    """The same recipes, and over each of them what is changed."""
    tree: dict[str, Any] = {}
    summary = read_tree(find_recipe(texts[0])).children.get("summary")
    if len(texts) == 1 and isinstance(summary, Leaf):
        tree["summary"] = summary.value
    tree["chain"] = [_reference(text, folder) for text in texts]
    form = recipe_forms(texts, overrides)[0]
    for table, name in (text.partition("=")[0].strip().split(".", 1) for text in form.kept):
        _put(tree.setdefault("each", {}), [table, name], value_at(form.settings, table)[name])
    for key, value in form.edits.items():
        _put(tree.setdefault("each", {}), key.split("."), plain(value))
    return tree


def _reference(text: str, folder: Path) -> str:
    """A shipped recipe by its name, as long as that means the same from the new file; else the whole path."""
    file = find_recipe(text).resolve()
    try:
        means_the_same = find_recipe(file.stem, folder).resolve() == file
    except InputError:
        means_the_same = False
    return file.stem if means_the_same else str(file)


def _put(tree: dict[str, Any], parts: list[str], value: Any) -> None:
    for part in parts[:-1]:
        tree = tree.setdefault(part, {})
    tree[parts[-1]] = value


def _check_same(wanted: LoadedChain, found: LoadedChain, *, renamed: bool) -> None:
    for want, got in zip(wanted.stages, found.stages, strict=True):
        expected = msgspec.structs.replace(want.recipe, name=got.recipe.name) if renamed else want.recipe
        if got.recipe != expected:
            mine = {field.key: field.value for field in fields_of(got.recipe, {})}
            keys = [field.key for field in fields_of(expected, {}) if mine[field.key] != field.value]
            raise InputError(
                f"the file wouldn't give the same {', '.join(keys)} in {want.recipe.name}: a chain file can add to"
                f" the tables of its recipes and can't take from them",
                "change that in the recipe itself",
            )


def _shown(text: str) -> str:
    return Path(text).name
