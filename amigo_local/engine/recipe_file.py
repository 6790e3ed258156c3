"""Loads a recipe: built-in defaults < base.yaml < the recipe < --set, strict, with origins."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

from amigo_local.domain.errors import InputError
from amigo_local.domain.recipe import DataSource, Recipe
from amigo_local.engine.settings_tree import build, origins, overlay, parse_override, parse_yaml
from amigo_local.shipped import shipped_folder


@dataclass(frozen=True)
class LoadedRecipe:
    recipe: Recipe
    path: Path
    origins: dict[str, str]
    """Key path -> `file:line` or `--set key`, for every leaf that isn't a built-in default."""


def find_recipe(text: str) -> Path:
    """A path, or the name of a shipped recipe. Raises InputError listing what ships."""
    path = Path(text).expanduser()
    if path.is_file():
        return path
    shipped = shipped_folder("recipes")
    named = shipped / f"{text.removesuffix('.yaml')}.yaml"
    if os.sep not in text and "/" not in text and named.is_file():
        return named
    names = ", ".join(sorted(file.stem for file in shipped.glob("*.yaml") if file.stem != "base"))
    raise InputError(f"no recipe at {text}", f"give a path to a YAML file, or the name of a shipped recipe: {names}")


def load_recipe(text: str, overrides: Sequence[str] = ()) -> LoadedRecipe:
    """Reads, merges and checks. Relative data paths in the recipe mean: relative to its file."""
    path = find_recipe(text)
    base = shipped_folder("recipes") / "base.yaml"
    tree = parse_yaml(base.read_text(encoding="utf-8"), f"recipes/{base.name}")
    try:
        content = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{text} can't be read: {error}", "a recipe is a UTF-8 YAML file") from error
    tree = overlay(tree, parse_yaml(content, _shown(path)))
    for override in overrides:
        tree = overlay(tree, parse_override(override))
    recipe = build(Recipe, tree)
    sources = tuple(_anchored(source, path.parent) for source in recipe.data.sources)
    recipe = msgspec.structs.replace(recipe, data=msgspec.structs.replace(recipe.data, sources=sources))
    return LoadedRecipe(recipe, path, origins(tree))


def _anchored(source: DataSource, folder: Path) -> DataSource:
    if source.jsonl is None:
        return source
    return msgspec.structs.replace(source, jsonl=str((folder / Path(source.jsonl).expanduser()).resolve()))


def _shown(path: Path) -> str:
    """As the person would name it: shipped ones as recipes/NAME, others relative to where they are."""
    resolved = path.resolve()
    if resolved.parent == shipped_folder("recipes"):
        return f"recipes/{path.name}"
    try:
        return str(resolved.relative_to(Path.cwd()))
    except ValueError:
        return str(path)
