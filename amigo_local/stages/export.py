"""export: base and adapter as one quantized GGUF in one pass, proven against the model in PyTorch."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

from amigo_local.domain.artifact import Artifact, Figure
from amigo_local.domain.errors import InputError
from amigo_local.domain.plan import Needs
from amigo_local.domain.recipe import Quant
from amigo_local.domain.shape import ModelShape
from amigo_local.engine.contract import Chain, Params, Stage, StageContext, StageResult, Step, option
from amigo_local.stages._check_texts import CHECKED_TEXTS, TEXTS
from amigo_local.stages._models import newest_run_with, resolve, run_artifacts
from amigo_local.stages._shapes import gguf_bytes
from amigo_local.stages.imatrix import ImatrixParams

AUTO = "auto"
AUTO_CHUNKS = 40  # 20,480 tokens: on a 12B model and a laptop's processor most of an hour
_RAM_BYTES = 300 << 20  # of the pass itself, at most (docs/measurements.md); the proof takes more
_ELEMENTS_PER_SECOND = 6.7e6  # with its proof: 134.5 M in 20 s on two cores (docs/measurements.md)


class ExportRequest(Params, frozen=True, kw_only=True):
    quant: Annotated[Quant, option("Types of the tensors: keep the base's, or one of llama.cpp's mixes.")] = "keep"
    run: Annotated[str | None, option("Run whose adapter is exported; default: the newest that trained one.")] = None
    base: Annotated[str | None, option("REF of the base (a tag, GGUF or checkpoint) instead of a run.")] = None
    adapter: Annotated[str | None, option("Directory of the adapter on --base; default: none, to requantize.")] = None
    like: Annotated[
        str | None, option("REF of the GGUF that gives types, tokenizer and template when --base is a checkpoint.")
    ] = None
    imatrix: Annotated[
        str | None, option("Importance matrix: a file, or `auto` to collect one on the run's training data.")
    ] = None
    allow_nonfinite: Annotated[bool, option("Take weights that are NaN or infinite as they are.")] = False
    out: Annotated[str | None, option("GGUF file to write; default: in the home folder.")] = None


class ExportParams(Params, frozen=True, kw_only=True):
    base: str
    """REF of the GGUF that gives metadata, tokenizer and chat template, and the weights unless `from_checkpoint`."""
    adapter: str | None
    quant: Quant
    checkpoint: str | None = None
    """The base in PyTorch's form, for the proof; None: the proof reads the GGUF itself."""
    dataset: str | None = None
    """What `prepare` made: predictions are compared on prompts that it held out; None: on texts of our own."""
    from_checkpoint: bool = False
    """Whether `checkpoint` gives the weights: the original that the adapter was trained on."""
    imatrix: str | None = None
    """Path of an importance matrix."""
    allow_nonfinite: bool = False
    name: str = "refined"
    """Stem of the file."""
    check_prompts: int = 8
    out: str | None = None


def steps(params: ExportRequest, context: StageContext) -> Chain:
    if params.run is not None and params.base is not None:
        raise InputError("--run and --base exclude each other", "give --run ID, or --base REF with --adapter DIR")
    if params.like is not None and params.base is None:
        raise InputError("--like needs the checkpoint that it is for", "add --base DIR")
    if params.adapter == "":
        raise InputError("--adapter is empty", "give the adapter's directory, or leave it out")
    if params.adapter is not None and params.base is None:
        raise InputError("--adapter needs its base", "add --base REF, the model that it was trained on")
    base, adapter, checkpoint, dataset = params.base, params.adapter, None, None
    from_checkpoint = False
    if base is None:
        found = _artifacts_of_run(params, context)
        trained = next((a for a in reversed(found) if a.kind == "adapter"), None)
        source = next((a for a in reversed(found) if a.stage in ("unpack", "tokenizer")), None)
        if trained is None:
            raise InputError(f"run {params.run} has trained no adapter", "give a run that has, or --base and --adapter")
        if source is None:
            raise InputError(
                "this run was trained on a checkpoint of its own (model.base)",
                f"amigo-local export --base CHECKPOINT --like REF --adapter {trained.path}",
            )
        base, adapter = str(source.params["ref"]), trained.path
        # Where there is no unpacked checkpoint, or `runs clean` has taken it, the proof reads the GGUF itself.
        checkpoint = source.path if source.kind == "checkpoint" and Path(source.path).is_dir() else None
        dataset = next((a.path for a in reversed(found) if a.kind == "dataset" and Path(a.path).is_dir()), None)
        if resolve(base, context).digest != source.sources["model"]:
            raise InputError(f"{base} is no longer the model that this run was trained on", "give --base and --adapter")
    elif (given := resolve(base, context)).checkpoint is not None:
        if params.like is None:
            raise InputError(
                f"{base} is a checkpoint: it doesn't say how Ollama is to read and quantize it",
                "add --like TAG, the model in Ollama (or the .gguf) that this is the original of",
            )
        base, checkpoint, from_checkpoint = params.like, str(given.checkpoint), True
    elif params.like is not None:
        raise InputError(
            f"--like is for a checkpoint, {base} has types, tokenizer and template of its own", "leave --like out"
        )
    imatrix = params.imatrix
    if imatrix == AUTO:
        if dataset is None:
            raise InputError(
                "--imatrix auto needs a run: it is collected on the run's training data",
                f"amigo-local imatrix {base} --texts FILE, then --imatrix PATH",
            )
        imatrix = (yield Step("imatrix", ImatrixParams(ref=base, texts=dataset, chunks=AUTO_CHUNKS))).path
    yield Step(
        "export",
        ExportParams(
            base=base,
            adapter=adapter,
            quant=params.quant,
            checkpoint=checkpoint,
            dataset=dataset,
            from_checkpoint=from_checkpoint,
            imatrix=imatrix,
            allow_nonfinite=params.allow_nonfinite,
            out=params.out,
        ),
    )


def _artifacts_of_run(params: ExportRequest, context: StageContext) -> list[Artifact]:
    if params.run:
        return run_artifacts(context.workspace, params.run)
    run_id, found = newest_run_with(context.workspace, "adapter")
    context.note(f"exporting the newest run that trained an adapter: {run_id}")
    return found


def inputs(params: ExportParams, context: StageContext) -> dict[str, str]:
    model = resolve(params.base, context)
    model.need_gguf("export")
    found = {"base": model.digest}
    digest = context.workspace.digests.digest
    if params.adapter:
        from amigo_local.weights.adapter import read_adapter

        read_adapter(_path(params.adapter))  # refuses what is no adapter, or of a kind that can't be merged
        found["adapter"] = digest(_path(params.adapter))
    if params.imatrix:
        if not _path(params.imatrix).is_file():
            raise InputError(f"there is no file {params.imatrix}", "give an importance matrix, or --imatrix auto")
        found["imatrix"] = digest(_path(params.imatrix))
    for what, path in (("checkpoint", params.checkpoint), ("dataset", params.dataset)):
        if path and not _path(path).is_dir():
            raise InputError(
                f"the {what} of this run is gone: {path}", "give --base and --adapter, or run the recipe again"
            )
    if params.dataset:
        found["dataset"] = digest(_path(params.dataset))
    if params.from_checkpoint and params.checkpoint:
        found["checkpoint"] = digest(_path(params.checkpoint))
    return found


def needs(params: ExportParams, context: StageContext) -> Needs:
    from amigo_local.weights.export_plan import plan_export
    from amigo_local.weights.language_model import copy_bytes
    from amigo_local.weights.probe import comparison_bytes

    base = resolve(params.base, context).need_gguf("export")
    # The types, and so the size, don't depend on the adapter, which may not be trained yet.
    # Not in the home, which a plan of the loop needn't find there.
    plan = plan_export(base, None, params.quant, Path(tempfile.gettempdir()), has_imatrix=bool(params.imatrix))
    return Needs(
        disk_bytes=plan.file_bytes + copy_bytes(plan.donor),
        ram_bytes=max(_RAM_BYTES, comparison_bytes(plan.donor)),
        seconds=plan.donor.parameters / _ELEMENTS_PER_SECOND,
    )


def outlook(params: ExportParams, shape: ModelShape, context: StageContext) -> Needs:
    from amigo_local.weights.probe import comparison_bytes_of_layer

    return Needs(
        disk_bytes=gguf_bytes(shape, params.quant),
        ram_bytes=max(_RAM_BYTES, comparison_bytes_of_layer(4 * shape.layer_parameters)),
        seconds=shape.parameters / _ELEMENTS_PER_SECOND,
    )


def run(params: ExportParams, context: StageContext) -> StageResult:
    from amigo_local.weights.check_texts import check_texts
    from amigo_local.weights.export import export
    from amigo_local.weights.export_plan import plan_export
    from amigo_local.weights.imatrix import read_importance_matrix
    from amigo_local.weights.verify_export import check_exported

    base = resolve(params.base, context).need_gguf("export")
    adapter = _path(params.adapter) if params.adapter else None
    checkpoint = _path(params.checkpoint) if params.checkpoint else None
    matrix = read_importance_matrix(_path(params.imatrix)) if params.imatrix else None
    plan = plan_export(
        base,
        adapter,
        params.quant,
        context.build_dir(),
        checkpoint_dir=checkpoint if params.from_checkpoint else None,
        imatrix=matrix,
    )
    built = context.build_dir() / f"{params.name}-{params.quant}.gguf"
    figures = export(plan, built, context.emit, imatrix=matrix, allow_nonfinite=params.allow_nonfinite)
    figures |= check_exported(
        built,
        base,
        adapter,
        context.emit,
        expected_types=plan.types,
        verbatim=plan.copied,
        token_texts=check_texts(CHECKED_TEXTS),
        # Predictions of a model with NaN in it are NaN on both sides.
        prompts=[] if figures["nonfinite_values"] else _prompts(params),
        checkpoint_dir=checkpoint,
        checkpoint_is_donor=not params.from_checkpoint,
    )
    _say_what_is_kept(figures, context)
    return StageResult(figures, payload=built.name)


def _say_what_is_kept(figures: Mapping[str, Figure], context: StageContext) -> None:
    """Where it is little, the check has warned already."""
    share, distance, effect = (figures.get(name) for name in ("adapter_share", "kl_mean", "adapter_effect"))
    if isinstance(share, float) and isinstance(distance, float) and isinstance(effect, float) and distance < effect:
        context.note(
            f"{share:.0%} of what the adapter does to predictions is in the file: it is {distance:.2g} nats from base "
            f"plus adapter, the base alone {effect:.2g}",
            "good",
        )


def _prompts(params: ExportParams) -> list[str]:
    """Held-out samples, evenly spread, with our own texts where there are too few of them."""
    held_out: list[str] = []
    if params.dataset and params.check_prompts:
        from amigo_local.data.prepare import HELD_OUT_FILE, read_rows

        rows = read_rows(_path(params.dataset) / HELD_OUT_FILE)
        step = max(1, len(rows) // params.check_prompts)
        held_out = [f"{row.prompt}\n{row.completion}" for row in rows[::step]]
    return [*held_out, *TEXTS][: params.check_prompts]


def _path(text: str) -> Path:
    return Path(text).expanduser().absolute()


STAGE = Stage(
    "export",
    "Merge and quantize in one pass into one GGUF, proven against PyTorch.",
    ExportParams,
    run,
    steps,
    ExportRequest,
    produces="gguf",
    version=3,
    inputs=inputs,
    needs=needs,
    outlook=outlook,
)
