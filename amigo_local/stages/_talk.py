"""Which backend lets a set of models talk: one for all of them, so that a comparison is fair."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from amigo_local.domain.errors import InputError
from amigo_local.domain.generation import ChatBackend
from amigo_local.engine.contract import StageContext
from amigo_local.stages._models import ResolvedModel, resolve
from amigo_local.stages._serving import library, need_embedded, reachable

if TYPE_CHECKING:
    from amigo_local.serving.embedded import AdaptedModel


READ_BYTES_PER_SECOND = 65 * 103.7e6  # of weights, once a token: SmolLM2-135M Q4_1, one thread (docs/measurements.md)
RUNTIME_BYTES = 300 << 20  # interpreter, llama.cpp, KV cache of 4096 tokens


@dataclass(frozen=True)
class BackendChoice:
    """`models` are the names that this backend knows them by, in the order of the REFs."""

    place: str
    """URL of the server, or `embedded`."""
    models: tuple[str, ...]
    resolved: tuple[ResolvedModel, ...]

    def open(self, context: StageContext, sharing: int = 1) -> ChatBackend:
        """Connects; nothing is loaded yet. `sharing`: how many such backends work at the same time. Raises InputError
        when llama-cpp-python is needed and missing."""
        if self.place == "embedded":
            threads = None if sharing == 1 else max(1, (context.machine.cpu_count - 1) // sharing)
            return open_embedded(context, threads=threads)
        from amigo_local.serving.ollama_chat import OllamaBackend

        server = reachable(context.settings)
        assert server is not None
        return OllamaBackend(server)


def choose_backend(refs: Sequence[str], context: StageContext) -> BackendChoice:
    """The server when it has every one of the models as a tag, else the embedded llama.cpp."""
    models = [resolve(ref, context) for ref in refs]
    server = reachable(context.settings)
    if server and all(model.tag for model in models):
        return BackendChoice(server.url, tuple(str(model.tag) for model in models), tuple(models))
    for model in models:
        model.need_gguf("chat")
    # A library tag brings its definition; anything else is a file.
    names = [model.tag if model.tag and server is None else str(model.gguf) for model in models]
    return BackendChoice("embedded", tuple(names), tuple(models))


def talks_as(model: ResolvedModel) -> str:
    """Digest of what its answers depend on: the weights, and what its tag says of template, system and parameters."""
    if model.definition is None:
        return model.digest
    told = msgspec.json.encode(msgspec.structs.replace(model.definition, from_="", license=()))
    return f"{model.digest} {hashlib.sha256(told).hexdigest()[:16]}"


def programs_run(context: StageContext) -> str:
    """Whether generated code can be run here: where it can't, what comes out is another thing."""
    from amigo_local.evaluation.sandbox import open_sandbox

    return "yes" if open_sandbox(context.settings.unsafe).can_run else "no"


def open_embedded(
    context: StageContext, adapters: Mapping[str, AdaptedModel] = {}, threads: int | None = None
) -> ChatBackend:
    """llama.cpp in this process; `threads`: None takes all cores but one. Raises InputError when it isn't installed."""
    need_embedded()
    from amigo_local.serving.embedded import EmbeddedBackend

    scratch = context.workspace.cache_dir
    return EmbeddedBackend(
        library(context).get,
        adapters=adapters,
        loadable=lambda gguf: _loadable(gguf, scratch),
        threads=threads,
        clock=context.clock,
    )


@contextlib.contextmanager
def _loadable(gguf: Path, scratch: Path) -> Iterator[Path]:
    """Without a vision tower, as Ollama's library packs one into the file of a language model."""
    from amigo_local.weights.gguf_header import read_header
    from amigo_local.weights.language_model import loadable, needs_copy

    header = None
    with contextlib.suppress(InputError):  # of an architecture that we don't know: llama.cpp may
        header = found if needs_copy(found := read_header(gguf)) else None
    if header is None:
        yield gguf
        return
    scratch.mkdir(parents=True, exist_ok=True)
    with loadable(header, scratch) as file:
        yield file
