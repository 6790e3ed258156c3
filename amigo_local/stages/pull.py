"""pull: fetches a tag from its registry into the Ollama server, layer by layer, resumable."""

from __future__ import annotations

from typing import Annotated

from amigo_local.engine.contract import Params, Stage, StageContext, StageResult, argument, option
from amigo_local.stages._serving import ollama_server


class PullParams(Params, frozen=True, kw_only=True):
    tag: Annotated[str, argument("The tag to pull, as `ollama pull` takes it.")]
    insecure: Annotated[bool, option("Allow a registry without TLS.")] = False


def run(params: PullParams, context: StageContext) -> StageResult:
    pulled = ollama_server(context.settings).pull(params.tag, context.emit, params.insecure)
    context.note(f"{pulled.name} is there: {pulled.family} {pulled.parameter_size} {pulled.quantization}", "good")
    return StageResult({"digest": pulled.digest, "size_bytes": pulled.size_bytes})


STAGE = Stage(
    "pull",
    "Pull a tag into Ollama, layer by layer; a cut pull goes on.",
    PullParams,
    run,
    locks=False,
    journals=True,
)
