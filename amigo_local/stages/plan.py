"""plan: what a recipe will run, what each stage needs, what is done already, and what binds."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import msgspec

from amigo_local.domain.artifact import Artifact, Figure
from amigo_local.domain.errors import InputError
from amigo_local.domain.events import Column, Table
from amigo_local.domain.plan import Needs, Plan, PlannedStage
from amigo_local.domain.units import format_size
from amigo_local.engine.contract import RecipeRequest, Stage, StageContext, StageResult, Step, option
from amigo_local.engine.fingerprint import fingerprint
from amigo_local.stages._loop import loop


class PlanParams(RecipeRequest, frozen=True, kw_only=True):
    vram: Annotated[str | None, option("Plan for a card with so much, such as 6GiB.")] = None
    ram: Annotated[str | None, option("Plan for so much memory, such as 16GiB.")] = None


_COLUMNS = (
    Column("stage"),
    Column("status"),
    Column("VRAM", "bytes"),
    Column("RAM", "bytes"),
    Column("disk", "bytes"),
    Column("time", "seconds"),
    Column("what"),
)


def run(params: PlanParams, context: StageContext) -> StageResult:
    plan, refusal = make_plan(params, _budgeted(params, context))
    rows = tuple(_row(stage) for stage in plan.stages)
    context.emit(Table(f"Plan of {plan.recipe}", _COLUMNS, rows))
    open_stages = [stage for stage in plan.stages if stage.status == "to do"]
    seconds = [stage.needs.seconds for stage in open_stages if stage.needs.seconds]
    figures: dict[str, Figure] = {
        "stages": len(plan.stages),
        "done": len(plan.stages) - len(open_stages),
        "peak_vram_bytes": max((stage.needs.vram_bytes for stage in plan.stages), default=0),
        "peak_ram_bytes": max((stage.needs.ram_bytes for stage in plan.stages), default=0),
        "disk_bytes": sum(stage.needs.disk_bytes for stage in open_stages),
        "seconds": sum(seconds),
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
    """The context as it would be on the machine that is planned for."""
    from dataclasses import replace

    from amigo_local.engine.machine import measure_machine

    budget = msgspec.structs.replace(
        context.settings.machine,
        vram=params.vram or context.settings.machine.vram,
        ram=params.ram or context.settings.machine.ram,
    )
    machine = measure_machine(context.workspace.root, budget)
    if params.ram:  # a planned machine has what it is given, whatever this one has
        from amigo_local.domain.units import parse_size

        size = parse_size(params.ram)
        machine = msgspec.structs.replace(machine, ram_total_bytes=size, ram_available_bytes=size)
    return replace(context, machine=machine)


def make_plan(request: RecipeRequest, context: StageContext) -> tuple[Plan, InputError | None]:
    """Walks the loop without running it. The error is what would stop it, when something would."""
    from amigo_local.stages import load_stage

    planned: list[PlannedStage] = []
    refusal: InputError | None = None
    chain, artifact = loop(request, context), None
    while True:
        try:
            step = chain.send(artifact)
        except StopIteration:
            break
        stage = load_stage(step.stage)
        if stage.produces is None:
            planned.append(PlannedStage(stage=stage.name, summary=stage.summary, status="to do", needs=Needs()))
            context.note("what follows can be planned once the tag is there", fix=f"amigo-local {stage.name} …")
            break
        done = _committed(stage, step, context)
        needs = Needs()
        if done is None and stage.needs:
            try:
                needs = stage.needs(step.params, context)
            except InputError as error:
                # What isn't made yet can't be read; only a machine that is too small refuses a plan.
                refusal = refusal or (error if stage.name == "train" else None)
        planned.append(
            PlannedStage(
                stage=stage.name,
                summary=stage.summary,
                status="done" if done else "to do",
                needs=needs,
                artifact_path=done.path if done else None,
            )
        )
        artifact = done or _to_be_made(stage, context)
    plan = Plan(
        recipe=request.recipe,
        model=request.model or "",
        stages=tuple(planned),
        binding=refusal.message if refusal else None,
        nearest=refusal.hint if refusal else None,
    )
    return plan, refusal


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


def _to_be_made(stage: Stage, context: StageContext) -> Artifact:
    """Stands for an artifact in the steps that follow; nothing lies at its path."""
    assert stage.produces is not None
    path = Path(context.workspace.artifacts_dir) / f"{stage.name}-to-be-made"
    suffix = ".gguf" if stage.produces == "gguf" else ""
    return Artifact(stage.produces, f"{path}{suffix}", "sha256:to-be-made", 0, stage.name, "to-be-made")


def _row(stage: PlannedStage) -> tuple[Figure, ...]:
    needs = stage.needs
    shown = (needs.vram_bytes or None, needs.ram_bytes or None, needs.disk_bytes or None, needs.seconds)
    return (stage.stage, stage.status, *shown, stage.artifact_path or stage.summary)


STAGE = Stage(
    "plan", "What a recipe will run, what it needs, what is already done.", PlanParams, run, place="here", locks=False
)
