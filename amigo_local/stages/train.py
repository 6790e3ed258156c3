"""train: refines the model with a memory-budgeted QLoRA, resumable at any instant."""

from __future__ import annotations

from pathlib import Path

from amigo_local.domain.plan import Needs
from amigo_local.domain.recipe import TrainSettings
from amigo_local.domain.shape import ModelShape
from amigo_local.engine.contract import Params, RecipeRequest, Stage, StageContext, StageResult
from amigo_local.stages._loop import chain_until
from amigo_local.stages._serving import reachable


class TrainParams(Params, frozen=True, kw_only=True):
    checkpoint: str
    dataset: str
    train: TrainSettings
    max_length_tokens: int
    shape: ModelShape


def inputs(params: TrainParams, context: StageContext) -> dict[str, str]:
    digest = context.workspace.digests.digest
    return {"checkpoint": digest(Path(params.checkpoint)), "dataset": digest(Path(params.dataset))}


def needs(params: TrainParams, context: StageContext) -> Needs:
    from amigo_local.training.memory import check_fits, estimate_training

    asked = (params.shape, params.train, params.max_length_tokens, context.machine)
    check_fits(*asked)
    return estimate_training(*asked)[0]


def run(params: TrainParams, context: StageContext) -> StageResult:
    from amigo_local.training.memory import estimate_training
    from amigo_local.training.process import prepare_process

    _, batching = estimate_training(params.shape, params.train, params.max_length_tokens, context.machine)
    prepare_process()
    if context.machine.vram_total_bytes and (server := reachable(context.settings)):
        server.unload_all(context.emit)  # the card is wanted whole
    from amigo_local.training.sft import train_sft

    base_name = context.workspace.digests.digest(Path(params.checkpoint))
    figures = train_sft(
        params.train,
        batching,
        Path(params.checkpoint),
        Path(params.dataset),
        context.build_dir(),
        context.emit,
        base_name=base_name,
    )
    return StageResult(figures)


STAGE = Stage(
    "train",
    "Refine the model with the recipe's QLoRA; resumes where it was cut.",
    TrainParams,
    run,
    chain_until("train"),
    RecipeRequest,
    produces="adapter",
    resumable=True,
    inputs=inputs,
    needs=needs,
)
