"""Every recipe that can be picked: those that ship, and files in folders of the person's own."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from amigo_local.domain.errors import InputError
from amigo_local.engine.recipe_chain import load_chain
from amigo_local.engine.recipe_file import read_tree
from amigo_local.engine.settings_tree import Leaf
from amigo_local.shipped import shipped_folder


@dataclass(frozen=True)
class RecipeEntry:
    name: str
    """What verbs take as RECIPE: the name of a shipped one, else the path."""
    path: Path
    summary: str = ""
    stages: tuple[str, ...] = ()
    """Names of its recipes; more than one make a chain."""
    error: str = ""
    """Why it can't be used."""
    hint: str = ""

    @property
    def is_chain(self) -> bool:
        return len(self.stages) > 1


def list_recipes(folders: Sequence[Path]) -> list[RecipeEntry]:
    """Shipped ones first, then each folder's, by name; a file that can't be read or loaded is listed with its error."""
    shipped = shipped_folder("recipes").resolve()
    seen: set[Path] = set()
    found = []
    for folder in (shipped, *folders):
        for path in _files(folder):
            if path.resolve() in seen or path.resolve() == shipped / "base.yaml":
                continue
            seen.add(path.resolve())
            found.append(_entry(path, path.stem if folder == shipped else str(path)))
    return found


def own_folders(home: Path) -> tuple[Path, Path]:
    """Where a person's recipes are looked for, and where the program saves them."""
    return Path.cwd() / "recipes", home / "recipes"


def _files(folder: Path) -> Iterator[Path]:
    try:
        files = [path for path in folder.iterdir() if path.suffix in (".yaml", ".yml") and not path.is_dir()]
    except OSError:
        return
    yield from sorted(files, key=lambda path: path.name)


def _entry(path: Path, name: str) -> RecipeEntry:
    try:
        chain = load_chain((str(path),))
    except InputError as error:
        return RecipeEntry(name, path, error=error.message, hint=error.hint)
    names = tuple(stage.recipe.name for stage in chain.stages)
    summary = chain.stages[0].recipe.summary
    if "chain" in (tree := read_tree(path).children):
        own = tree.get("summary")
        summary = str(own.value) if isinstance(own, Leaf) else ""
    return RecipeEntry(name, path, summary, names)
