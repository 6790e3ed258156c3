"""prepare: builds the training set of a recipe, and shows what is in it."""

from __future__ import annotations

from pathlib import Path

from amigo_local.domain.errors import InputError
from amigo_local.domain.plan import Needs
from amigo_local.domain.recipe import DataSettings
from amigo_local.engine.contract import Params, RecipeRequest, Stage, StageContext, StageResult
from amigo_local.stages._loop import chain_until

_PAIRS_OF_A_SOURCE = 4000
_BYTES_PER_PAIR = 4 << 10  # 341 KiB for 267 pairs in the demo, and room for longer ones


class PrepareParams(Params, frozen=True, kw_only=True):
    checkpoint: str
    """Directory whose tokenizer and chat template render the samples."""
    data: DataSettings


def inputs(params: PrepareParams, context: StageContext) -> dict[str, str]:
    import platform

    found = {"checkpoint": context.workspace.digests.digest(Path(params.checkpoint))}
    for source in params.data.sources:
        if source.jsonl:
            path = Path(source.jsonl)
            if not path.is_file():
                raise InputError(f"the data file {path} isn't there", "correct data.sources in the recipe")
            found[f"jsonl:{path.name}"] = context.workspace.digests.digest(path)
        else:
            found["stdlib"] = platform.python_version()  # what is mined is this Python's own library
    return found


def expected_pairs(data: DataSettings) -> int:
    """Before the sources are read: their limits, or what the whole standard library gives, and room for more."""
    return sum(source.limit or _PAIRS_OF_A_SOURCE for source in data.sources)


def needs(params: PrepareParams, context: StageContext) -> Needs:
    pairs = expected_pairs(params.data)
    return Needs(disk_bytes=pairs * _BYTES_PER_PAIR, ram_bytes=600 << 20, seconds=10 + pairs * 0.003)


def run(params: PrepareParams, context: StageContext) -> StageResult:
    from amigo_local.data.prepare import prepare

    texts = _evaluation_texts(context)
    return StageResult(prepare(params.data, Path(params.checkpoint), context.build_dir(), context.emit, texts))


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
    inputs=inputs,
    needs=needs,
)
