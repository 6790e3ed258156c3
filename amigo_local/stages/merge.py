"""merge: a checkpoint with the adapter folded in, for those who want one."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from amigo_local.domain.plan import Needs
from amigo_local.engine.contract import Chain, Params, Stage, StageContext, StageResult, Step, option
from amigo_local.stages._models import resolve
from amigo_local.stages.unpack import UnpackParams


class MergeParams(Params, frozen=True, kw_only=True):
    base: Annotated[str, option("REF of the model that the adapter was trained on.")]
    adapter: Annotated[str, option("Directory with adapter_config.json.")]
    out: Annotated[str, option("Directory to write.")]
    allow_nonfinite: Annotated[bool, option("Take weights that are NaN or infinite as they are.")] = False


def steps(params: MergeParams, context: StageContext) -> Chain:
    from amigo_local.weights.adapter import read_adapter

    read_adapter(_path(params.adapter))  # refuses what can't be merged before gigabytes are unpacked for it
    base = resolve(params.base, context)
    checkpoint = str(base.checkpoint)
    if base.checkpoint is None:
        unpacked = yield Step("unpack", UnpackParams(ref=params.base, allow_nonfinite=params.allow_nonfinite))
        checkpoint = unpacked.path
    yield Step(
        "merge",
        MergeParams(base=checkpoint, adapter=params.adapter, out=params.out, allow_nonfinite=params.allow_nonfinite),
    )


def inputs(params: MergeParams, context: StageContext) -> dict[str, str]:
    from amigo_local.weights.adapter import read_adapter

    adapter = _path(params.adapter)
    read_adapter(adapter)
    return {"base": resolve(params.base, context).digest, "adapter": context.workspace.digests.digest(adapter)}


def needs(params: MergeParams, context: StageContext) -> Needs:
    from amigo_local.weights.merge import merge_disk_needed

    disk = merge_disk_needed(resolve(params.base, context).files)
    return Needs(disk_bytes=disk, ram_bytes=800 << 20, seconds=None)


def run(params: MergeParams, context: StageContext) -> StageResult:
    from amigo_local.weights.merge import merge

    base = resolve(params.base, context).files
    adapter = _path(params.adapter)
    return StageResult(merge(base, adapter, context.build_dir(), context.emit, allow_nonfinite=params.allow_nonfinite))


def _path(text: str) -> Path:
    return Path(text).expanduser().absolute()


STAGE = Stage(
    "merge",
    "Fold an adapter into its base: a merged safetensors checkpoint.",
    MergeParams,
    run,
    steps,
    produces="checkpoint",
    inputs=inputs,
    needs=needs,
)
