"""train: refines the model with a memory-budgeted QLoRA, resumable at any instant."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from amigo_local.domain.machine import Machine
from amigo_local.domain.plan import Needs
from amigo_local.domain.recipe import TrainSettings
from amigo_local.domain.settings import MachineBudget
from amigo_local.domain.shape import ModelShape
from amigo_local.engine.contract import Params, RecipeRequest, Stage, StageContext, StageResult
from amigo_local.engine.machine import measure_machine
from amigo_local.stages._gpu_handoff import hand_over_gpu, handed_over, read_nvidia_smi
from amigo_local.stages._loop import chain_until
from amigo_local.stages._models import resolve
from amigo_local.stages._serving import reachable

if TYPE_CHECKING:
    from amigo_local.domain.memory_plan import MemoryPlan
    from amigo_local.training.frozen_base import FrozenBase
    from amigo_local.training.memory_formula import Calibration


class _SetFigures(msgspec.Struct):
    train_samples: int
    train_tokens: int


class _Stats(msgspec.Struct):
    """The part of `prepare`'s stats.json that says how long training takes."""

    figures: _SetFigures


class TrainParams(Params, frozen=True, kw_only=True):
    base: str
    """NF4 store, or a checkpoint where train.quantization is none."""
    source: str
    """REF of the model that the store was made from: its embedding stays there."""
    dataset: str
    start_adapter: str | None = None
    """Directory of the adapter to go on from."""
    train: TrainSettings
    max_length_tokens: int
    shape: ModelShape


def inputs(params: TrainParams, context: StageContext) -> dict[str, str]:
    digest = context.workspace.digests.digest
    found = {"base": digest(Path(params.base)), "dataset": digest(Path(params.dataset))}
    if params.start_adapter:
        found["start_adapter"] = digest(Path(params.start_adapter))
    return found


def needs(params: TrainParams, context: StageContext) -> Needs:
    from amigo_local.training import memory_plan

    plan = choose_plan(params, context, handed_over(context.machine, reachable(context.settings)))
    samples, mean_length = measured_set(Path(params.dataset))
    return memory_plan.needs(plan, params.train, samples=samples, mean_length_tokens=mean_length)


def choose_plan(
    params: TrainParams, context: StageContext, machine: Machine, calibration: Calibration | None = None
) -> MemoryPlan:
    """Raises InputError when nothing fits, with what binds and the nearest change that would."""
    from amigo_local.training import memory_plan
    from amigo_local.training.memory_formula import ASSUMED

    return memory_plan.choose_plan(
        params.shape,
        params.train,
        params.max_length_tokens,
        machine,
        table_type=resolve(params.source, context).table_type(),
        calibration=calibration or ASSUMED,
    )


def run(params: TrainParams, context: StageContext) -> StageResult:
    from amigo_local.training.process import prepare_process

    prepare_process()
    on_card = context.machine.gpu_name is not None
    if on_card:
        hand_over_gpu(reachable(context.settings), context.emit, read_gpu=read_nvidia_smi)
        context = replace(context, machine=measure_machine(context.workspace.root, context.settings.machine))
    # What the driver says, not what the budget leaves of it, and before torch has taken any.
    vram_free = measure_machine(context.workspace.root, MachineBudget()).vram_free_bytes
    from amigo_local.training.device import check_card, visible_card
    from amigo_local.training.dpo import train_dpo
    from amigo_local.training.memory_formula import layer_bytes
    from amigo_local.training.probe import Probing
    from amigo_local.training.sft import train_sft
    from amigo_local.training.training_run import TrainingRun

    check_card(context.emit, context.machine.gpu_name)
    if on_card and visible_card() is None:  # as check_card has said, it runs on the processor
        on_card = False
        without = msgspec.structs.replace(context.machine, gpu_name=None, vram_total_bytes=None, vram_free_bytes=None)
        context = replace(context, machine=without)
    training = TrainingRun(
        settings=params.train,
        plan=choose_plan(params, context, context.machine),
        base=_base(params, context),
        dataset_dir=Path(params.dataset),
        out_dir=context.build_dir(),
        emit=context.emit,
        start_adapter=Path(params.start_adapter) if params.start_adapter else None,
        probing=Probing(
            replan=lambda measured: choose_plan(params, context, context.machine, measured),
            layer_bytes=layer_bytes(params.shape) if on_card and params.train.quantization == "nf4" else 0,
            vram_free_bytes=vram_free,
        ),
        trackers_dir=context.workspace.runs_dir / context.run_id / "trackers",
        clock=context.clock,
        stop_asked=context.stop_asked,
    )
    return StageResult(train_dpo(training) if params.train.method == "dpo" else train_sft(training))


def _base(params: TrainParams, context: StageContext) -> FrozenBase:
    """An adapter belongs to the model, whatever store it was trained on."""
    base, model = Path(params.base), resolve(params.source, context)
    if params.train.quantization == "none":
        from amigo_local.training.frozen_base import base_from_checkpoint

        return base_from_checkpoint(base, params.train, model.digest)
    from amigo_local.training.streamed_base import base_from_store

    return base_from_store(base, name=model.digest, source_digest=model.digest, source=model.files)


def measured_set(dataset: Path) -> tuple[int | None, float | None]:
    """(rows, mean tokens) of a set that `prepare` has made; (None, None) of one that it hasn't yet."""
    try:
        figures = msgspec.json.decode((dataset / "stats.json").read_bytes(), type=_Stats).figures
    except (OSError, msgspec.MsgspecError):
        return None, None
    return figures.train_samples, figures.train_tokens / max(1, figures.train_samples)


STAGE = Stage(
    "train",
    "Refine the model with the recipe's QLoRA; resumes where it was cut.",
    TrainParams,
    run,
    chain_until("train"),
    RecipeRequest,
    produces="adapter",
    version=2,
    resumable=True,
    inputs=inputs,
    needs=needs,
)
