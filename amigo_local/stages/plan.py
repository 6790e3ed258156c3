"""plan: what a recipe will run, what each stage needs, what is done already, and what binds."""

from __future__ import annotations

import contextlib
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import msgspec

from amigo_local.domain.artifact import Artifact, Figure
from amigo_local.domain.errors import InputError
from amigo_local.domain.events import Column, PlanMade, Table
from amigo_local.domain.memory_plan import MemoryPlan
from amigo_local.domain.plan import Needs, Plan, PlannedStage
from amigo_local.domain.recipe import DataSettings
from amigo_local.domain.units import MIB, format_size, parse_size
from amigo_local.engine.contract import ChainRequest, Stage, StageContext, StageResult, Step, option
from amigo_local.engine.fingerprint import fingerprint
from amigo_local.stages._gpu_handoff import handed_over
from amigo_local.stages._loop import loop, source_ref
from amigo_local.stages._models import ResolvedModel, resolve
from amigo_local.stages._serving import reachable
from amigo_local.stages._shapes import shape_file, shape_names
from amigo_local.stages.prepare import PrepareParams, expected_pairs
from amigo_local.stages.train import TrainParams, measured_set

_Sets = dict[str, DataSettings]
"""Path of a set, made or not -> what it is made from."""


class PlanParams(ChainRequest, frozen=True, kw_only=True):
    model: Annotated[
        str | None,
        option("REF of the model; a config.json or the name of a shipped shape (gemma-3-12b) is enough."),
    ] = None
    vram: Annotated[str | None, option("Plan for a card with so much, such as 6GiB.")] = None
    ram: Annotated[str | None, option("Plan for so much memory, such as 16GiB.")] = None


_COLUMNS = (
    Column("stage"),
    Column("status"),
    Column("VRAM", "bytes"),
    Column("RAM", "bytes"),
    Column("disk", "bytes"),
    Column("time", "seconds"),
    Column("made"),
)
_LEVERS = (
    Column("lever: train.…"),
    Column("chosen"),
    Column("instead of"),
    Column("saves VRAM", "bytes"),
    Column("saves RAM", "bytes"),
    Column("saves a step", "seconds"),
)


def run(params: PlanParams, context: StageContext) -> StageResult:
    context = _budgeted(params, context)
    plan, refusal = make_plan(params, context)
    context.emit(Table(f"Plan of {plan.recipe}", _COLUMNS, tuple(_row(stage) for stage in plan.stages)))
    if plan.memory:
        context.emit(Table("Levers of training", _LEVERS, _lever_rows(plan.memory)))
    context.emit(PlanMade(plan))
    open_stages = [stage for stage in plan.stages if stage.status == "to do"]
    figures: dict[str, Figure] = {
        "stages": len(plan.stages),
        "done": len(plan.stages) - len(open_stages),
        "peak_vram_bytes": max((stage.needs.vram_bytes for stage in plan.stages), default=0),
        "peak_ram_bytes": max((stage.needs.ram_bytes for stage in plan.stages), default=0),
        "disk_bytes": sum(stage.needs.disk_bytes for stage in open_stages),
        "seconds": sum(stage.needs.seconds for stage in open_stages if stage.needs.seconds),
    }
    if refusal:
        raise refusal
    free = context.machine.disk_free_bytes
    disk = int(figures["disk_bytes"] or 0)
    if disk > free:
        raise InputError(
            f"the disk of {context.workspace.root} is too small: the loop needs {format_size(disk)} ({disk} bytes),"
            f" {format_size(free)} ({free} bytes) are free",
            "free some space (`amigo-local runs clean`), or use another disk with --home DIR",
        )
    context.note("it fits this machine" if not (params.vram or params.ram) else "it fits that machine", "good")
    return StageResult(figures)


def _budgeted(params: PlanParams, context: StageContext) -> StageContext:
    """The context as it would be on the machine that is planned for: this one, once Ollama has let go of its card."""
    machine = handed_over(context.machine, reachable(context.settings))
    if params.vram:  # a planned machine has what it is given, whatever this one has
        size = _size("--vram", params.vram)
        name = machine.gpu_name or "planned GPU"
        machine = msgspec.structs.replace(machine, gpu_name=name, vram_total_bytes=size, vram_free_bytes=size)
    if params.ram:
        size = _size("--ram", params.ram)
        machine = msgspec.structs.replace(machine, ram_total_bytes=size, ram_available_bytes=size)
    return replace(context, machine=machine)


def _size(name: str, text: str) -> int:
    """Raises InputError for `6` as well: nobody plans for six bytes."""
    if (size := parse_size(text)) < MIB:
        raise InputError(f"{name} {text} is {size} bytes", f"with a unit: {name} {text}GiB")
    return size


def make_plan(request: ChainRequest, context: StageContext) -> tuple[Plan, InputError | None]:
    """Walks the loop without running it. The error is what would stop it, when something would."""
    from amigo_local.engine.recipe_chain import load_chain
    from amigo_local.stages import load_stage

    named = request.model
    if request.model and (config := shape_file(request.model)):
        request = msgspec.structs.replace(request, model=str(config))
    whole = load_chain(request.recipe, request.overrides)
    recipe = whole.stages[0].recipe
    planned: list[PlannedStage] = []
    refusal: InputError | None = None
    memory: MemoryPlan | None = None
    source: ResolvedModel | None = None
    sets = _Sets()
    chain, artifact = loop(request, context), None
    while True:
        try:
            step = chain.send(artifact)
        except StopIteration:
            break
        except InputError as error:
            if not planned and source_ref(request, recipe).kind == "ollama":
                raise InputError(error.message, f"{error.hint}; {_shapes_do()}") from error
            raise
        stage = load_stage(step.stage)
        if stage.produces is None:
            planned.append(PlannedStage(stage=stage.name, summary=stage.summary, status="to do", needs=Needs()))
            text = f"what follows can be planned once the tag is there; {_shapes_do()}"
            context.note(text, fix=f"amigo-local pull {request.model or recipe.model.source}")
            break
        source = source or resolve(str(source_ref(request, recipe)), context)
        done = _committed(stage, step, context)
        needs = Needs()
        if done is None and isinstance(step.params, TrainParams):
            trained, needs, refused = _training(source, step.params, sets, context)
            longer = memory is None or trained.max_length_tokens > memory.max_length_tokens
            if (refused and not refusal) or (longer and not refusal):
                memory = trained  # of several trainings the first that doesn't fit, else that of the longest samples
            refusal = refusal or refused
        elif done is None:
            needs = _needs(stage, step, source, context)
        planned.append(
            PlannedStage(
                stage=stage.name,
                summary=stage.summary,
                status="done" if done else "to do",
                needs=needs,
                artifact=done,
                of=step.of,
            )
        )
        artifact = done or _to_be_made(stage, len(planned), context)
        if isinstance(step.params, PrepareParams):
            sets[artifact.path] = step.params.data
    plan = Plan(
        recipe=whole.name,
        model=named or recipe.model.source or "",
        stages=tuple(planned),
        memory=memory,
        binding=refusal.message if refusal else None,
        nearest=refusal.hint if refusal else None,
    )
    return plan, refusal


def _shapes_do() -> str:
    return f"the model (--model) can also be one of: {', '.join(shape_names())}"


def _needs(stage: Stage, step: Step, source: ResolvedModel, context: StageContext) -> Needs:
    """The stage's own word; what isn't made yet can't be read, so else what the model's dimensions say."""
    if source.config and stage.outlook:
        return stage.outlook(step.params, source.shape(), context)
    if stage.needs:
        with contextlib.suppress(InputError, OSError):
            return stage.needs(step.params, context)
    return Needs()


def _training(
    source: ResolvedModel, params: TrainParams, sets: _Sets, context: StageContext
) -> tuple[MemoryPlan, Needs, InputError | None]:
    """The plan that fits, or the smallest one and why it doesn't."""
    from amigo_local.training.memory_formula import Job
    from amigo_local.training.memory_plan import fitted, needs
    from amigo_local.training.memory_refusal import refusal

    job = Job(source.shape(), params.train, params.max_length_tokens, source.table_type())
    fit = fitted(job, context.machine)
    error = refusal(job, context.machine, fit) if fit.lacking else None
    samples, mean_length = measured_set(Path(params.dataset))
    if samples is None:
        data = sets[params.dataset]
        samples = int(expected_pairs(data) * (1 - data.held_out_fraction))
    return fit.plan, needs(fit.plan, params.train, samples=samples, mean_length_tokens=mean_length), error


def _committed(stage: Stage, step: Step, context: StageContext) -> Artifact | None:
    try:
        sources = stage.inputs(step.params, context) if stage.inputs else {}
    except (InputError, OSError):
        return None  # its inputs aren't made yet
    mark = fingerprint(stage.name, stage.version, msgspec.to_builtins(step.params), sources)
    done = context.workspace.committed(stage.name, mark)
    if done and stage.still_holds and not stage.still_holds(step.params, done, context):
        return None
    return done


def _to_be_made(stage: Stage, place: int, context: StageContext) -> Artifact:
    """Stands for an artifact in the steps that follow; nothing lies at its path."""
    assert stage.produces is not None
    path = Path(context.workspace.artifacts_dir) / f"{stage.name}-to-be-made-{place}"
    suffix = ".gguf" if stage.produces == "gguf" else ""
    return Artifact(stage.produces, f"{path}{suffix}", "sha256:to-be-made", 0, stage.name, "to-be-made")


def _row(stage: PlannedStage) -> tuple[Figure, ...]:
    needs = stage.needs
    shown = (needs.vram_bytes or None, needs.ram_bytes or None, needs.disk_bytes or None, needs.seconds)
    name = f"{stage.of.partition('_')[0]} {stage.stage}" if stage.of else stage.stage
    return (name, stage.status, *shown, Path(stage.artifact.path).name if stage.artifact else None)


def _lever_rows(memory: MemoryPlan) -> tuple[tuple[Figure, ...], ...]:
    return tuple(
        (
            lever.name.removeprefix("train."),
            lever.chosen,
            lever.other,
            lever.vram_saved_bytes or None,
            lever.ram_saved_bytes or None,
            lever.seconds_saved if abs(lever.seconds_saved) >= 0.05 else None,
        )
        for lever in memory.levers
    )


STAGE = Stage(
    "plan", "What a recipe will run, what it needs, what is already done.", PlanParams, run, place="here", locks=False
)
