"""Makes the paths of recipes and of data sources absolute, so that a process in any folder means the same files."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TypeVar

import msgspec

from amigo_local.domain.data_source import CandidatesSource, Source
from amigo_local.domain.errors import InputError
from amigo_local.domain.model_ref import parse_model_ref
from amigo_local.engine.contract import Params, RecipeRequest

_PATHS = ("jsonl", "json", "parquet", "repo")
_NAMES = {"doctest": ("stdlib",), "bug_injection": ("stdlib",), "votes": ("mine",), "replay": ("earlier",)}
"""Kinds that name something else as well as paths, and the words that are no path."""
_AnySource = TypeVar("_AnySource", bound=Source)


def anchored(source: _AnySource, folder: Path) -> _AnySource:
    """The source with every path in it absolute; `folder` is what they are relative to."""
    if isinstance(source, CandidatesSource):
        inner = tuple(anchored(problem, folder) for problem in source.candidates)
        return msgspec.structs.replace(source, candidates=inner)
    if source.kind not in _PATHS and source.kind not in _NAMES:
        return source
    given = getattr(source, source.kind)
    names = (given,) if isinstance(given, str) else given
    found = tuple(absolute(name, folder) if _is_path(name, source.kind) else name for name in names)
    return msgspec.structs.replace(source, **{source.kind: found[0] if isinstance(given, str) else found})


def _is_path(name: str, kind: str) -> bool:
    """A package's name is told from a folder's by its spelling."""
    if kind in _PATHS:
        return True
    if name in _NAMES[kind] or name.startswith("run:"):
        return False
    return kind in ("votes", "replay") or "/" in name or os.sep in name or name.startswith((".", "~"))


def absolute(text: str, folder: Path) -> str:
    """A path or a pattern of paths; links are followed where there is no pattern."""
    path = folder / Path(text).expanduser()
    return str(path.absolute() if any(sign in text for sign in "*?[") else path.resolve())


def found_from_anywhere(params: Params) -> Params:
    """With the paths of recipes and of the model absolute: the run may be resumed from another folder."""
    if not isinstance(params, RecipeRequest):
        return params
    recipes = tuple(str(Path(text).absolute()) if Path(text).is_file() else text for text in params.recipe)
    return msgspec.structs.replace(params, recipe=recipes, model=params.model and _model_from_anywhere(params.model))


def _model_from_anywhere(text: str) -> str:
    try:
        ref = parse_model_ref(text)
    except InputError:
        return text  # the verb says what is wrong with it
    return str(ref) if ref.kind in ("gguf", "checkpoint") else text
