"""export: base and adapter as one quantized GGUF, proven against the model in PyTorch."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from amigo_local.domain.errors import InputError
from amigo_local.domain.plan import Needs
from amigo_local.domain.recipe import Quant
from amigo_local.engine.contract import Chain, Params, Stage, StageContext, StageResult, Step, option
from amigo_local.stages._check_texts import TEXTS
from amigo_local.stages._models import newest_run_with, resolve, run_artifacts
from amigo_local.stages.unpack import UnpackParams

_ELEMENTS_PER_SECOND = 8e6  # with its check: 134.5 M in 16 s on two cores (docs/measurements.md)


class ExportRequest(Params, frozen=True, kw_only=True):
    quant: Annotated[Quant, option("Quantization of the file.")] = "q4_k_m"
    run: Annotated[str | None, option("Run whose adapter is exported; default: the newest that trained one.")] = None
    base: Annotated[str | None, option("REF of the base (a GGUF or a tag), with --adapter.")] = None
    adapter: Annotated[str | None, option("Directory of the adapter, with --base.")] = None
    out: Annotated[str | None, option("GGUF file to write; default: in the home folder.")] = None


class ExportParams(Params, frozen=True, kw_only=True):
    base: str
    """REF of the GGUF that gives weights, metadata, tokenizer and chat template."""
    adapter: str | None
    quant: Quant
    checkpoint: str | None = None
    """The base in PyTorch's form, for the proof; None: unpacked by a step before, or no proof."""
    name: str = "refined"
    """Stem of the file."""
    check_prompts: int = 8
    out: str | None = None


def steps(params: ExportRequest, context: StageContext) -> Chain:
    base, adapter, checkpoint = params.base, params.adapter, None
    if (base is None) != (adapter is None):
        raise InputError("--base and --adapter go together", "give both, or neither to export a run")
    if base is None:
        run_id, found = (
            (params.run, run_artifacts(context.workspace, params.run))
            if params.run
            else newest_run_with(context.workspace, "adapter")
        )
        if params.run is None:
            context.note(f"exporting the newest run that trained an adapter: {run_id}")
        trained = next((a for a in reversed(found) if a.kind == "adapter"), None)
        unpacked = next((a for a in reversed(found) if a.stage == "unpack"), None)
        if trained is None or unpacked is None:
            raise InputError(f"run {run_id} has trained no adapter", "give a run that has, or --base and --adapter")
        base, adapter, checkpoint = str(unpacked.params["ref"]), trained.path, unpacked.path
        if resolve(base, context).digest != unpacked.sources["model"]:
            raise InputError(
                f"{base} is no longer the model that run {run_id} was trained on", "give --base and --adapter"
            )
    if checkpoint is None:
        checkpoint = (yield Step("unpack", UnpackParams(ref=base))).path
    yield Step(
        "export", ExportParams(base=base, adapter=adapter, quant=params.quant, checkpoint=checkpoint, out=params.out)
    )


def inputs(params: ExportParams, context: StageContext) -> dict[str, str]:
    model = resolve(params.base, context)
    model.need_gguf("export")
    found = {"base": model.digest}
    if params.adapter:
        from amigo_local.weights.adapter import read_adapter

        adapter = Path(params.adapter).expanduser().absolute()
        read_adapter(adapter)
        found["adapter"] = context.workspace.digests.digest(adapter)
    return found


def needs(params: ExportParams, context: StageContext) -> Needs:
    from amigo_local.weights.export import disk_needed
    from amigo_local.weights.gguf_header import read_header

    header = read_header(resolve(params.base, context).need_gguf("export"))
    seconds = header.parameters / _ELEMENTS_PER_SECOND
    return Needs(disk_bytes=disk_needed(header, params.quant), ram_bytes=1 << 30, seconds=seconds)


def run(params: ExportParams, context: StageContext) -> StageResult:
    from amigo_local.weights.export import export
    from amigo_local.weights.verify_export import check_exported

    base = resolve(params.base, context).need_gguf("export")
    adapter = Path(params.adapter).expanduser().absolute() if params.adapter else None
    name = f"{params.name}-{params.quant}.gguf"
    figures = export(base, adapter, context.build_dir() / name, params.quant, context.emit)
    if params.checkpoint and params.check_prompts:
        texts = TEXTS[: params.check_prompts]
        built = context.build_dir() / name
        figures |= check_exported(Path(params.checkpoint), adapter, built, texts, context.emit, base_gguf=base)
    return StageResult(figures, payload=name)


STAGE = Stage(
    "export",
    "Merge and quantize into one GGUF, checked against the model in PyTorch.",
    ExportParams,
    run,
    steps,
    ExportRequest,
    produces="gguf",
    inputs=inputs,
    needs=needs,
)
