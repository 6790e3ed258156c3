"""The sets of a chain's recipes, one after the other: candidates where the model is asked, then prepare."""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec

from amigo_local.domain.artifact import Artifact
from amigo_local.domain.data_source import CandidatesSource, DataSource, ReplaySource
from amigo_local.domain.errors import InputError
from amigo_local.domain.recipe import DataSettings, Recipe
from amigo_local.engine.contract import StageContext, Step
from amigo_local.stages._models import run_artifacts

EARLIER = "earlier"
Steps = Generator[Step, Any, Any]


def prepared_sets(
    recipes: Sequence[Recipe], ref: str, tokenizer: str, context: StageContext, *, planning: bool
) -> Generator[Step, Artifact, dict[str, str]]:
    """Recipe name -> folder of its set, in order."""
    from amigo_local.stages.prepare import PrepareParams

    sets: dict[str, str] = {}
    single = len(recipes) == 1
    for recipe in recipes:
        of = "" if single else recipe.name
        earlier = {name: path for name, path in sets.items() if _method(recipes, name) == "sft"}
        data, folders = _with_replayed(recipe.data, earlier, context)
        data = _pinned(data, context, planning)
        for source in data.sources:
            if isinstance(source, CandidatesSource):
                folders |= yield from _candidates(source, ref, of)
        params = PrepareParams(checkpoint=tokenizer, data=data, folders=folders)
        sets[recipe.name] = (yield Step("prepare", params, of)).path
    return sets


def _method(recipes: Sequence[Recipe], name: str) -> str:
    return next(recipe.train.method for recipe in recipes if recipe.name == name)


def _candidates(source: CandidatesSource, ref: str, of: str) -> Generator[Step, Artifact, dict[str, str]]:
    from amigo_local.data.sources.candidates import key_of
    from amigo_local.stages.candidates import params_of

    made = yield Step("candidates", params_of(source, ref), of)
    return {key_of(source): made.path}


def _pinned(data: DataSettings, context: StageContext, planning: bool) -> DataSettings:
    """With the commits that hub sets are at. A plan can do without a hub, and says nothing of it."""
    from amigo_local.stages._data_sources import pinned

    try:
        return pinned(data, replace(context, emit=lambda event: None) if planning else context)
    except InputError:
        if planning:
            return data
        raise


def _with_replayed(
    data: DataSettings, earlier: Mapping[str, str], context: StageContext
) -> tuple[DataSettings, dict[str, str]]:
    """The settings, and the folders of the sets that are replayed. In a recipe that runs alone, there is no earlier
    one: then nothing is replayed, and said."""
    folders: dict[str, str] = {}
    kept: list[DataSource] = []
    for source in data.sources:
        if not isinstance(source, ReplaySource):
            kept.append(source)
            continue
        names = (source.replay,) if isinstance(source.replay, str) else source.replay
        if EARLIER in names and not earlier:
            context.note("no earlier stage to replay samples of", "warning", "run it in a chain: amigo-local run all")
            names = tuple(name for name in names if name != EARLIER)
        if names:
            kept.append(msgspec.structs.replace(source, replay=names))
        for name in names:
            folders |= folders_of(name, earlier, context)
    return msgspec.structs.replace(data, sources=tuple(kept)), folders


def folders_of(name: str, earlier: Mapping[str, str], context: StageContext) -> dict[str, str]:
    """The sets that a name in `replay` means. Raises InputError for a run that isn't there or has made none."""
    if name == EARLIER:
        return {f"{EARLIER} {stage}": path for stage, path in earlier.items()}
    if not name.startswith("run:"):
        return {name: name}
    found = run_artifacts(context.workspace, name.removeprefix("run:"))
    made = [artifact.path for artifact in found if artifact.kind == "dataset"]
    if not made:
        raise InputError(f"replay: {name} has prepared no set", f"amigo-local runs show {name.removeprefix('run:')}")
    return {f"{name} {Path(path).name}" if len(made) > 1 else name: path for path in made}
