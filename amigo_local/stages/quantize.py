"""quantize: the NF4 base that training streams from, straight from a GGUF or a checkpoint."""

from __future__ import annotations

import shutil
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import msgspec

from amigo_local.domain.artifact import Artifact
from amigo_local.domain.errors import InputError
from amigo_local.domain.plan import Needs
from amigo_local.domain.shape import ModelShape
from amigo_local.engine.contract import Params, Stage, StageContext, StageResult, argument, option
from amigo_local.stages._models import ResolvedModel, resolve, step_by_ref

if TYPE_CHECKING:
    from amigo_local.weights.weight_source import CheckpointWeights, GgufWeights

_FIXED_BYTES = 1 << 20
_RAM_BYTES = 1 << 30  # 748 MB at 12B shape on two cores, half of it torch and transformers (docs/measurements.md)
_CORE_BYTES = 12 << 20  # a piece of float32 on its way, and its temporaries
_WEIGHTS_PER_SECOND = 100e6  # of a core: 112 s of processor time at 12B shape (docs/measurements.md)
_CORES = 8  # more wait for the disk
_START_SECONDS = 5.0


class QuantizeParams(Params, frozen=True, kw_only=True):
    ref: Annotated[str, argument("REF of the model to train: a tag, a GGUF or a checkpoint.")]
    out: Annotated[str | None, option("Directory to write; default: in the home folder.")] = None


def inputs(params: QuantizeParams, context: StageContext) -> dict[str, str]:
    try:
        quantizer = version("bitsandbytes")
    except PackageNotFoundError as error:
        raise InputError("quantize needs bitsandbytes", "pip install 'amigo-local[train]'") from error
    return {"model": _resolved(params, context).digest, "bitsandbytes": quantizer}


def needs(params: QuantizeParams, context: StageContext) -> Needs:
    return outlook(params, _resolved(params, context).shape(), context)


def outlook(params: QuantizeParams, shape: ModelShape, context: StageContext) -> Needs:
    """A table of a type that torch can't decode, which is rare, comes on top."""
    from amigo_local.training.memory_formula import layer_bytes, small_bytes
    from amigo_local.training.nf4_index import SEGMENT_ALIGNMENT

    cores = context.machine.cpu_count
    layers = shape.layers * (layer_bytes(shape) + SEGMENT_ALIGNMENT)
    return Needs(
        disk_bytes=layers + small_bytes(shape) + _FIXED_BYTES,
        ram_bytes=_RAM_BYTES + cores * _CORE_BYTES,
        seconds=_START_SECONDS + shape.parameters / (_WEIGHTS_PER_SECOND * min(cores, _CORES)),
    )


def run(params: QuantizeParams, context: StageContext) -> StageResult:
    from amigo_local.training.nf4_build import build_store

    model, build = _resolved(params, context), context.build_dir()
    figures = build_store(_source(model, build), model.digest, build, context.emit)
    context.note(
        f"NF4 changes the weights by {figures['mean_error']:.2%} of their size,"
        f" {figures['worst_tensor']} most, by {figures['worst_error']:.2%}"
    )
    return StageResult(figures)


def still_holds(params: QuantizeParams, artifact: Artifact, context: StageContext) -> bool:
    """Whether the store and the embedding in its source are both there."""
    from amigo_local.training.nf4_index import check_store

    model = _resolved(params, context)
    try:
        check_store(Path(artifact.path), source_digest=model.digest, source=model.files)
    except InputError:
        return False
    return True


def _resolved(params: QuantizeParams, context: StageContext) -> ResolvedModel:
    model = resolve(params.ref, context)
    _ = model.files  # refuses a tag whose weights can't be read here
    return model


def _source(model: ResolvedModel, build: Path) -> GgufWeights | CheckpointWeights:
    """The weights; writes beside the store the config.json that `unpack` would write, or that the checkpoint has."""
    from amigo_local.weights.weight_source import CheckpointWeights, GgufWeights

    if model.gguf is None:
        config = model.files / "config.json"
        if "quantization_config" in msgspec.json.decode(config.read_bytes()):
            raise InputError(f"{config}: the checkpoint is quantized already", "give an unquantized one, or a GGUF")
        shutil.copyfile(config, build / "config.json")
        return CheckpointWeights(model.files)
    from amigo_local.weights.gguf_header import read_header
    from amigo_local.weights.unpack import write_config

    # NaN passes here, so that the builder refuses it in its own words.
    weights = GgufWeights(read_header(model.gguf), allow_nonfinite=True)
    write_config(weights.header, build, "bf16")
    return weights


STAGE = Stage(
    "quantize",
    "Make the NF4 base that QLoRA trains on; it is no GGUF type and can't be served.",
    QuantizeParams,
    run,
    step_by_ref("quantize"),
    produces="nf4",
    resumable=True,
    inputs=inputs,
    needs=needs,
    outlook=outlook,
    still_holds=still_holds,
)
"""Not llama.cpp's quantization: `export --quant` makes GGUF files to serve, this makes bitsandbytes' double-quantized
NF4 to train on."""
