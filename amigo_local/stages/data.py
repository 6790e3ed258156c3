"""data: what a recipe's sources are and give, before anything is made of them; samples as the model will see them."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import msgspec

from amigo_local.domain.artifact import Figure
from amigo_local.domain.data_source import CandidatesSource, DataSource, HubSource, ReplaySource, Source
from amigo_local.domain.errors import InputError
from amigo_local.domain.events import Column, Table
from amigo_local.domain.recipe import DataSettings, Recipe
from amigo_local.domain.strict import Positive
from amigo_local.engine.contract import Params, RecipeRequest, Stage, StageContext, StageResult, argument, option
from amigo_local.stages._loop import check_sources, source_ref
from amigo_local.stages._sets import EARLIER, folders_of

if TYPE_CHECKING:
    from amigo_local.data.reading import SourceFacts


class DataParams(Params, frozen=True, kw_only=True):
    action: Annotated[Literal["check", "preview"], argument("check or preview.")]
    recipe: Annotated[tuple[str, ...], argument("Path of a recipe, or the name of a shipped one; or several.")]
    model: Annotated[str | None, option("preview: REF of the model, instead of the recipe's model.source.")] = None
    count: Annotated[Positive, option("preview: so many samples of each recipe.")] = 5
    overrides: Annotated[tuple[str, ...], option("key.path=value", hidden=True)] = ()


_COLUMNS = (
    Column("recipe"),
    Column("source"),
    Column("there"),
    Column("licence"),
    Column("rows", "count"),
    Column("size", "bytes"),
)


def run(params: DataParams, context: StageContext) -> StageResult:
    from amigo_local.engine.recipe_chain import load_chain

    recipes = [stage.recipe for stage in load_chain(params.recipe, params.overrides).stages]
    if not any(recipe.data.sources for recipe in recipes):
        raise InputError(f"{recipes[0].name} names no data source", "add one: data.sources: [{stdlib: all}]")
    if params.action == "preview":
        return _preview(recipes, params, context)
    return _check(recipes, context)


def _check(recipes: Sequence[Recipe], context: StageContext) -> StageResult:
    """Every source in a table, then what it becomes. Raises InputError when one that is needed can't be read."""
    found = [
        (recipe.name, source, facts)
        for at, recipe in enumerate(recipes)
        for source, facts in _looked_at(recipe, recipes[:at], context)
    ]
    rows: list[tuple[Figure, ...]] = [
        (name, label(source), _there(source, facts), facts.license or None, facts.rows, facts.size_bytes)
        for name, source, facts in found
    ]
    context.emit(Table("Data", _COLUMNS, tuple(rows)))
    told: set[str] = set()
    for _, source, facts in found:
        text = _sentence(source, facts)
        if text not in told:
            context.note(text, "warning" if facts.problem else "info", facts.fix)
        told.add(text)
    missing = [(name, source, facts) for name, source, facts in found if not facts.reachable and not _optional(source)]
    if missing:
        name, source, facts = missing[0]
        others = f" (and {len(missing) - 1} more)" if len(missing) > 1 else ""
        raise InputError(f"{name} can't be prepared: {label(source)}: {_problem(source, facts)}{others}", facts.fix)
    for recipe in recipes:
        check_sources(recipe)
    absent = [label(source) for _, source, facts in found if not facts.reachable and isinstance(source, HubSource)]
    without = f"it can be prepared, without {', '.join(dict.fromkeys(absent))}"
    context.note(without if absent else "every source can be read", "good")
    return StageResult({"sources": len(found), "unreachable": len(absent)})


def _looked_at(
    recipe: Recipe, earlier: Sequence[Recipe], context: StageContext
) -> Iterator[tuple[DataSource, SourceFacts]]:
    for source in _all_of(recipe.data):
        yield (
            source,
            _replayed(source, earlier, context) if isinstance(source, ReplaySource) else _look(source, context),
        )


def _replayed(source: ReplaySource, earlier: Sequence[Recipe], context: StageContext) -> SourceFacts:
    """What a chain's stages before it make isn't there yet; folders and runs are."""
    from amigo_local.data.reading import SourceFacts
    from amigo_local.data.sources import replay
    from amigo_local.stages._data_sources import reading_of

    there = tuple(name for name in _replayed_names(source) if name != EARLIER)
    if not there:
        before = [each.name for each in earlier if each.train.method == "sft"]
        if not before:
            alone = "no earlier stage here: nothing is replayed"
            return SourceFacts(reachable=False, problem=alone, fix="run it in a chain: amigo-local run all")
        return SourceFacts(reachable=False, used=f"{source.share:.0%} of this set again from {', '.join(before)}")
    folders: dict[str, str] = {}
    try:
        for name in there:
            folders |= folders_of(name, {}, context)
    except InputError as error:
        return SourceFacts(reachable=False, problem=error.message, fix=error.hint)
    return replay.look(msgspec.structs.replace(source, replay=there), reading_of(context, folders))


def _all_of(data: DataSettings) -> Iterator[DataSource]:
    """Also those that candidates take their problems from."""
    for source in data.sources:
        yield source
        if isinstance(source, CandidatesSource):
            yield from source.candidates


def _look(source: DataSource, context: StageContext) -> SourceFacts:
    from amigo_local.data.source_files import file_of
    from amigo_local.stages._data_sources import reading_of

    return file_of(source).look(source, reading_of(context))


def _made_in_the_run(source: DataSource) -> bool:
    if isinstance(source, ReplaySource):
        return set(_replayed_names(source)) == {EARLIER}
    return isinstance(source, CandidatesSource)


def _replayed_names(source: ReplaySource) -> tuple[str, ...]:
    return (source.replay,) if isinstance(source.replay, str) else source.replay


def _optional(source: DataSource) -> bool:
    """What is made during the run, or may be missing."""
    return _made_in_the_run(source) or (isinstance(source, HubSource) and source.optional)


def _there(source: DataSource, facts: SourceFacts) -> str:
    if facts.reachable:
        return "yes"
    if _made_in_the_run(source):
        return "made in the run" if not facts.problem else "no"
    return "no, optional" if _optional(source) else "no"


def label(source: Source) -> str:
    """`repo ~/code/mine`: how a source is called in tables."""
    if isinstance(source, CandidatesSource):
        return f"candidates ({', '.join(source.pairs) or 'answers'})"
    given = getattr(source, source.kind)
    names = [given] if isinstance(given, str) else given
    shown = ", ".join(_shortened(name) for name in names)
    return f"{source.kind} {shown}"


def _shortened(name: str) -> str:
    path = Path(name)
    return f"…/{path.name}" if path.is_absolute() else name


def _problem(source: DataSource, facts: SourceFacts) -> str:
    """Without the set's name, which stands before it."""
    return facts.problem.removeprefix(f"{source.hub}: ") if isinstance(source, HubSource) else facts.problem


def _sentence(source: DataSource, facts: SourceFacts) -> str:
    parts = [_problem(source, facts), facts.used]
    if facts.columns:
        parts.append(f"columns: {', '.join(facts.columns)}")
    if facts.revision:
        parts.append(f"at {facts.revision}")
    return f"{label(source)}: {'; '.join(part for part in parts if part) or 'nothing to add'}"


def _preview(recipes: Sequence[Recipe], params: DataParams, context: StageContext) -> StageResult:
    from amigo_local.data.set_preview import preview
    from amigo_local.stages._data_sources import pinned, reading_of
    from amigo_local.stages._models import resolve
    from amigo_local.weights.unpack import unpack_tokenizer

    request = RecipeRequest(recipe=params.recipe, model=params.model)
    model = resolve(str(source_ref(request, recipes[0])), context)
    shown = 0
    with tempfile.TemporaryDirectory(prefix="amigo-preview-") as folder:
        checkpoint = model.checkpoint or Path(folder)
        if model.checkpoint is None:
            unpack_tokenizer(model.need_gguf("a preview"), checkpoint)
        for recipe in recipes:
            data = pinned(recipe.data, context)
            for sample in preview(data, checkpoint, params.count, lambda: reading_of(context)):
                context.emit(sample)
                shown += 1
    return StageResult({"samples": shown})


STAGE = Stage(
    "data",
    "Check a recipe's sources (data check), or look at samples (data preview).",
    DataParams,
    run,
    locks=False,
)
