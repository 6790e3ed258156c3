"""prepare: builds the training set of a recipe, and shows what is in it."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from pathlib import Path

from amigo_local.domain.data_source import (
    CandidatesSource,
    DataSource,
    FileSource,
    HubSource,
    ReplaySource,
    RepoSource,
    VotesSource,
)
from amigo_local.domain.errors import InputError
from amigo_local.domain.plan import Needs
from amigo_local.domain.recipe import DataSettings
from amigo_local.engine.contract import Params, RecipeRequest, Stage, StageContext, StageResult
from amigo_local.stages._loop import chain_until

# Pairs of the whole standard library by kind of source, and room for more (docs/measurements.md, Data).
_PAIRS_OF = {"stdlib": 500, "package": 300, "doctest": 100, "bug_injection": 300, "votes": 100, "repo": 2000}
_PAIRS_OF_A_SET = 50_000
_BYTES_PER_ROW_OF = {"jsonl": 500, "json": 500, "parquet": 200}
_BYTES_PER_PAIR = 10 << 10  # 4 KiB of a finished row, the same again while it is rendered, and what was gathered
_SECONDS_PER_PAIR = 0.001  # rendering; filters take a tenth of it
_RAM_BYTES = 700 << 20  # 467 MiB for a million rows, processes that filter included, and room for larger vocabularies


class PrepareParams(Params, frozen=True, kw_only=True):
    checkpoint: str
    """Directory whose tokenizer and chat template render the samples."""
    data: DataSettings
    folders: dict[str, str] = {}
    """What earlier steps made for sources: candidates by the source's key, replayed sets by how they are named."""


def inputs(params: PrepareParams, context: StageContext) -> dict[str, str]:
    from amigo_local.data.syntax import installed_grammars
    from amigo_local.stages._data_sources import source_digests

    digest = context.workspace.digests.digest
    found = {"checkpoint": digest(Path(params.checkpoint)), **source_digests(params.data.sources, context)}
    for name, folder in params.folders.items():
        found[f"folder:{name}"] = digest(Path(folder))
    for number, file in enumerate(params.data.evaluation_sets):
        if not Path(file).is_file():
            raise InputError(f"the evaluation set {file} isn't there", "correct data.evaluation_sets in the recipe")
        found[f"evaluation {number}:{Path(file).name}"] = digest(Path(file))
    found["grammars"] = " ".join(installed_grammars())
    return found


def expected_pairs(data: DataSettings) -> int:
    """Before the sources are read: their limits, or what such a source gives, and room for more."""
    replayed = sum(source.share for source in data.sources if isinstance(source, ReplaySource))
    others = sum(_expected(source) for source in data.sources if not isinstance(source, ReplaySource))
    return round(others / max(1 - replayed, 0.1)) if others else _PAIRS_OF["repo"]


def _expected(source: DataSource) -> int:
    if source.limit:
        return source.limit
    if isinstance(source, FileSource):
        from amigo_local.data.tables.table import tables_of

        size = 0
        with contextlib.suppress(InputError):  # what isn't there is told when it is read
            size = sum(table.size_bytes for table in tables_of(source))
        return min(source.rows or size, size // _BYTES_PER_ROW_OF[source.kind] + 1)
    if isinstance(source, HubSource):
        return source.rows or _PAIRS_OF_A_SET
    return source.problems if isinstance(source, CandidatesSource) else _PAIRS_OF[source.kind]


def needs(params: PrepareParams, context: StageContext) -> Needs:
    pairs = expected_pairs(params.data)
    return Needs(disk_bytes=pairs * _BYTES_PER_PAIR, ram_bytes=_RAM_BYTES, seconds=10 + pairs * _SECONDS_PER_PAIR)


def run(params: PrepareParams, context: StageContext) -> StageResult:
    from amigo_local.data.prepare import prepare
    from amigo_local.stages._data_sources import reading_of, source_digests

    mutable = [source for source in params.data.sources if isinstance(source, FileSource | RepoSource | VotesSource)]
    before = source_digests(mutable, context)
    figures = prepare(
        params.data,
        Path(params.checkpoint),
        context.build_dir(),
        lambda: reading_of(context, params.folders, params.data.seed),
        context.emit,
        _evaluation_texts(context),
    )
    _refuse_changed(before, source_digests(mutable, context))
    return StageResult(figures)


def _refuse_changed(before: Mapping[str, str], after: Mapping[str, str]) -> None:
    """A set's record says what it was made of: of a file that was written meanwhile, nobody can say."""
    changed = [name.partition(":")[2] for name in after if after[name] != before[name]]
    if changed:
        raise InputError(
            f"{', '.join(changed)} changed while it was read",
            "run the same command again, and leave it alone meanwhile",
        )


def _evaluation_texts(context: StageContext) -> tuple[str, ...]:
    """What must not be trained on: the problems that the result is measured with."""
    from amigo_local.evaluation.humaneval import load_problems

    try:
        problems = load_problems()
    except InputError as error:
        context.note(f"not checked against HumanEval: {error.message}", "warning", error.hint)
        return ()
    return tuple(problem.prompt + problem.canonical_solution for problem in problems)


STAGE = Stage(
    "prepare",
    "Build the training set of a recipe: counts, lengths, masked-token preview.",
    PrepareParams,
    run,
    chain_until("prepare"),
    RecipeRequest,
    produces="dataset",
    version=2,
    resumable=True,
    inputs=inputs,
    needs=needs,
)
