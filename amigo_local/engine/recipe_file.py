"""Loads a recipe: built-in defaults < base.yaml < the recipe < what a chain lays over it < --set, with origins."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

from amigo_local.domain.errors import InputError
from amigo_local.domain.recipe import Recipe
from amigo_local.engine.data_paths import absolute, anchored
from amigo_local.engine.settings_tree import Branch, Leaf, build, origins, overlay, parse_override, parse_yaml
from amigo_local.shipped import shipped_folder

TABLES = ("gate",)
"""Keys whose value is a table of the person's own names."""


@dataclass(frozen=True)
class LoadedRecipe:
    recipe: Recipe
    path: Path
    origins: dict[str, str]
    """Key path -> `file:line` or `--set key`, for every leaf that isn't a built-in default."""


@dataclass(frozen=True)
class Layer:
    """Settings that lie over a recipe, and the folder that paths in them are relative to."""

    tree: Branch
    folder: Path
    replaces: str = ""
    """Key of a table that it gives whole, in the place of the one below it."""


def find_recipe(text: str, beside: Path | None = None) -> Path:
    """A path, or one beside another file, or the name of a shipped recipe. Raises InputError listing what ships."""
    path = Path(text).expanduser()
    for candidate in (beside / path, beside / f"{text}.yaml") if beside else ():
        if candidate.is_file():
            return candidate
    if path.is_file():
        return path
    shipped = shipped_folder("recipes")
    named = shipped / f"{text.removesuffix('.yaml')}.yaml"
    if os.sep not in text and "/" not in text and named.is_file():
        return named
    names = ", ".join(sorted(file.stem for file in shipped.glob("*.yaml") if file.stem != "base"))
    raise InputError(f"no recipe at {text}", f"give a path to a YAML file, or the name of a shipped recipe: {names}")


def load_recipe(text: str, overrides: Sequence[str] = ()) -> LoadedRecipe:
    """Reads, merges and checks one recipe. Relative data paths mean: relative to the file that they stand in."""
    path = find_recipe(text)
    return layered(path, read_tree(path), (), overrides)


def read_tree(path: Path) -> Branch:
    """The settings of one file."""
    try:
        content = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path} can't be read: {error}", "a recipe is a UTF-8 YAML file") from error
    return parse_yaml(content, _shown(path))


def layered(path: Path, tree: Branch, above: Sequence[Layer], overrides: Sequence[str]) -> LoadedRecipe:
    """The recipe that a file, what lies over it, and flags make together."""
    base = shipped_folder("recipes") / "base.yaml"
    whole = parse_yaml(base.read_text(encoding="utf-8"), f"recipes/{base.name}")
    flags = [_flag(text) for text in overrides]
    folders = {"sources": path.parent, "evaluation_sets": path.parent}
    for layer in (Layer(tree, path.parent), *above, *flags):
        kept = {key: node for key, node in whole.children.items() if key != layer.replaces}
        whole = overlay(Branch(kept, False, whole.origin), layer.tree)
        given = layer.tree.children.get("data")
        folders |= {key: layer.folder for key in folders if isinstance(given, Branch) and key in given.children}
    if not any("name" in layer.tree.children for layer in (Layer(tree, path.parent), *above, *flags)):
        whole = overlay(whole, Branch({"name": Leaf(path.stem, str(path))}, False, ""))
    recipe = with_absolute_paths(build(Recipe, whole), folders["sources"], folders["evaluation_sets"])
    return LoadedRecipe(recipe, path, origins(whole))


def _flag(text: str) -> Layer:
    """`--set gate.humaneval=-5pt` changes one entry; `--set gate={…}` is the whole gate."""
    key = text.partition("=")[0].strip()
    return Layer(parse_override(text), Path.cwd(), key if key in TABLES else "")


def with_absolute_paths(recipe: Recipe, sources: Path, evaluation_sets: Path) -> Recipe:
    """With the paths of its data absolute; the folders are what they are relative to."""
    data = msgspec.structs.replace(
        recipe.data,
        sources=tuple(anchored(source, sources) for source in recipe.data.sources),
        evaluation_sets=tuple(absolute(file, evaluation_sets) for file in recipe.data.evaluation_sets),
    )
    return msgspec.structs.replace(recipe, data=data)


def _shown(path: Path) -> str:
    """As the person would name it: shipped ones as recipes/NAME, others relative to where they are."""
    resolved = path.resolve()
    if resolved.parent == shipped_folder("recipes"):
        return f"recipes/{path.name}"
    try:
        return str(resolved.relative_to(Path.cwd()))
    except ValueError:
        return str(path)
