"""Loads a chain of recipes: several files, or one that lists others and lays settings over each of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from amigo_local.domain.errors import InputError
from amigo_local.engine.recipe_file import Layer, LoadedRecipe, find_recipe, layered, read_tree
from amigo_local.engine.settings_tree import Branch, Leaf

_KEYS = ("name", "summary", "chain", "each")
_GOES_ON = "a stage goes on from the adapter of the one before"
_HELD_OUT = "what one stage holds out, another would train on"
_SHARED = {
    "model.source": _GOES_ON,
    "model.base": _GOES_ON,
    "train.quantization": _GOES_ON,
    "train.lora": _GOES_ON,
    "data.held_out_fraction": _HELD_OUT,
    "data.seed": _HELD_OUT,
}
"""What all recipes of a chain have in common, and why."""
_HINT = "a chain file has `chain: [RECIPE, …]` and, to change settings of all of them, `each: {…}`"


@dataclass(frozen=True)
class LoadedChain:
    name: str
    stages: tuple[LoadedRecipe, ...]
    """In the order they run; one for a single recipe."""
    files: frozenset[Path] = frozenset()
    """All that it was read from, links followed: recipes, and the chain files that name them."""


def load_chain(texts: Sequence[str], overrides: Sequence[str] = (), *, agreed: bool = True) -> LoadedChain:
    """Reads recipes and chain files, in order. Raises InputError for a cycle, a recipe that comes twice, or (unless
    `agreed` is False, for what is still being edited) recipes that aren't of one model."""
    found: list[tuple[Path, Branch, tuple[Layer, ...]]] = []
    files: set[Path] = set()
    for text in texts:
        found += _expanded(find_recipe(text), (), (), files)
    if not found:
        raise InputError("there is no recipe to run", "amigo-local run RECIPE …")
    stages = tuple(layered(path, tree, above, overrides) for path, tree, above in found)
    _check_names(stages)
    if agreed:
        _check_one_model(stages)
    first = find_recipe(texts[0])
    return LoadedChain(first.stem if len(texts) == 1 else "chain", stages, frozenset(files))


def _expanded(
    path: Path, above: tuple[Layer, ...], within: tuple[Path, ...], files: set[Path]
) -> list[tuple[Path, Branch, tuple[Layer, ...]]]:
    """Recipes that a file stands for, each with what lies over it, nearest first. What is read on the way is added to
    `files`."""
    path = path.resolve()
    if path in within:
        circle = " → ".join(file.name for file in (*within[within.index(path) :], path))
        raise InputError(f"the chain never ends: {circle}", f"take one of them out of `chain` in {within[-1]}")
    files.add(path)
    tree = read_tree(path)
    if "chain" not in tree.children:
        return [(path, tree, above)]
    for key, node in tree.children.items():
        if key not in _KEYS:
            raise InputError(f"{node.origin}: {key}: unknown key of a chain", _HINT)
    entries, each = tree.children["chain"], tree.children.get("each", Branch({}, False, ""))
    if not isinstance(entries, Branch) or not entries.is_list or not entries.children:
        raise InputError(f"{entries.origin}: chain: expected a list of recipes", _HINT)
    if not isinstance(each, Branch) or each.is_list:
        raise InputError(f"{each.origin}: each: expected settings", _HINT)
    found = []
    for entry in entries.children.values():
        name, own = _entry(entry)
        layers = (Layer(each, path.parent), Layer(own, path.parent), *above)
        found += _expanded(find_recipe(name, path.parent), layers, (*within, path), files)
    return found


def _entry(entry: Leaf | Branch) -> tuple[str, Branch]:
    """`stage1` or `{recipe: stage1, train: {…}}`: which recipe, and what is laid over it."""
    if isinstance(entry, Leaf) and isinstance(entry.value, str):
        return entry.value, Branch({}, False, entry.origin)
    name = entry.children.get("recipe") if isinstance(entry, Branch) and not entry.is_list else None
    if not isinstance(entry, Branch) or not isinstance(name, Leaf) or not isinstance(name.value, str):
        raise InputError(
            f"{entry.origin}: chain: expected a recipe's name or path, or `recipe: NAME` with settings", _HINT
        )
    return name.value, Branch({k: v for k, v in entry.children.items() if k != "recipe"}, False, entry.origin)


def _check_names(stages: Sequence[LoadedRecipe]) -> None:
    seen: dict[str, Path] = {}
    for stage in stages:
        name = stage.recipe.name
        if name in seen:
            also = "" if seen[name] == stage.path else f" ({seen[name]} and {stage.path})"
            raise InputError(f"the chain has {name} twice{also}", "name each recipe once, or give one another `name`")
        seen[name] = stage.path


def _check_one_model(stages: Sequence[LoadedRecipe]) -> None:
    """Every stage goes on from the adapter before it, which belongs to one model and has one shape; and none may train
    on what another holds out."""
    first = stages[0]
    for stage in stages[1:]:
        for key, reason in _SHARED.items():
            mine, theirs = _at(stage.recipe, key), _at(first.recipe, key)
            if mine != theirs:
                where = next((stage.origins[name] for name in stage.origins if name.startswith(key)), str(stage.path))
                raise InputError(
                    f"{where}: {stage.recipe.name} has another {key} than {first.recipe.name}: {_shown(mine)}, not"
                    f" {_shown(theirs)}; {reason}",
                    f"give all recipes of a chain the same {key}",
                )
        if stage.recipe.train.adapter is not None:
            raise InputError(
                f"{stage.origins['train.adapter']}: {stage.recipe.name} names an adapter, and would start from that of"
                f" the stage before it",
                "only the first recipe of a chain can have train.adapter",
            )


def _at(recipe: Any, key: str) -> Any:
    for part in key.split("."):
        recipe = getattr(recipe, part)
    return recipe


def _shown(value: Any) -> str:
    if not isinstance(value, msgspec.Struct):
        return "none" if value is None else str(value)
    plain = msgspec.to_builtins(value)
    return ", ".join(f"{key} {plain[key]}" for key in plain)
