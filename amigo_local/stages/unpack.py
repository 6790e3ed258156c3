"""unpack: turns a GGUF into a checkpoint that training frameworks read, and proves it."""

from __future__ import annotations

from typing import Annotated

from amigo_local.domain.plan import Needs
from amigo_local.domain.recipe import Dtype
from amigo_local.domain.shape import ModelShape
from amigo_local.engine.contract import Params, Stage, StageContext, StageResult, argument, option
from amigo_local.stages._check_texts import CHECKED_TEXTS, TEXTS
from amigo_local.stages._models import resolve, step_by_ref

_RAM_BYTES = 200 << 20  # of unpacking itself (docs/measurements.md); the check takes more
_BYTES_PER_SECOND = 22e6  # of the checkpoint, with its check: 258 MiB in 12 s on two cores (docs/measurements.md)


class UnpackParams(Params, frozen=True, kw_only=True):
    ref: Annotated[str, argument("REF of the model to unpack.")]
    out: Annotated[str | None, option("Directory to write; default: in the home folder.")] = None
    dtype: Annotated[Dtype | None, option("Type of the weights; default: what loses least of this model.")] = None
    allow_nonfinite: Annotated[bool, option("Take weights that are NaN or infinite as they are.")] = False


def inputs(params: UnpackParams, context: StageContext) -> dict[str, str]:
    model = resolve(params.ref, context)
    model.need_gguf("unpack")
    return {"model": model.digest}


def needs(params: UnpackParams, context: StageContext) -> Needs:
    from amigo_local.weights.gguf_header import read_header
    from amigo_local.weights.probe import comparison_bytes
    from amigo_local.weights.unpack import unpack_disk_needed

    header = read_header(resolve(params.ref, context).need_gguf("unpack"))
    disk = unpack_disk_needed(header, params.dtype)
    ram = max(_RAM_BYTES, comparison_bytes(header))
    return Needs(disk_bytes=disk, ram_bytes=ram, seconds=disk / _BYTES_PER_SECOND)


def outlook(params: UnpackParams, shape: ModelShape, context: StageContext) -> Needs:
    from amigo_local.weights.probe import comparison_bytes_of_layer
    from amigo_local.weights.unpack import ITEM_BYTES, TOKENIZER_BYTES

    disk = shape.parameters * ITEM_BYTES[params.dtype or "bf16"] + TOKENIZER_BYTES
    ram = max(_RAM_BYTES, comparison_bytes_of_layer(4 * shape.layer_parameters))
    return Needs(disk_bytes=disk, ram_bytes=ram, seconds=disk / _BYTES_PER_SECOND)


def run(params: UnpackParams, context: StageContext) -> StageResult:
    from amigo_local.weights.check_texts import check_texts
    from amigo_local.weights.unpack import unpack
    from amigo_local.weights.verify_unpack import check_unpacked

    gguf = resolve(params.ref, context).need_gguf("unpack")
    figures = unpack(gguf, context.build_dir(), params.dtype, context.emit, allow_nonfinite=params.allow_nonfinite)
    prompts = [] if figures["nonfinite_values"] else TEXTS  # predictions of NaN are NaN on both sides
    figures |= check_unpacked(gguf, context.build_dir(), check_texts(CHECKED_TEXTS), context.emit, prompts=prompts)
    return StageResult(figures)


STAGE = Stage(
    "unpack",
    "Turn a GGUF back into a safetensors checkpoint, checked against llama.cpp.",
    UnpackParams,
    run,
    step_by_ref("unpack"),
    produces="checkpoint",
    version=2,
    inputs=inputs,
    needs=needs,
    outlook=outlook,
)
