"""Which backend lets a set of models talk: one for all of them, so that a comparison is fair."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from amigo_local.domain.generation import ChatBackend
from amigo_local.engine.contract import StageContext
from amigo_local.stages._models import resolve
from amigo_local.stages._serving import library, need_embedded, reachable


@dataclass(frozen=True)
class BackendChoice:
    """`models` are the names that this backend knows them by, in the order of the REFs."""

    place: str
    """URL of the server, or `embedded`."""
    models: tuple[str, ...]

    def open(self, context: StageContext) -> ChatBackend:
        """Connects; nothing is loaded yet. Raises InputError when llama-cpp-python is needed and missing."""
        if self.place == "embedded":
            need_embedded()
            from amigo_local.serving.embedded import EmbeddedBackend

            return EmbeddedBackend(library(context).get)
        from amigo_local.serving.ollama_chat import OllamaBackend

        server = reachable(context.settings)
        assert server is not None
        return OllamaBackend(server)


def choose_backend(refs: Sequence[str], context: StageContext) -> BackendChoice:
    """The server when it has every one of the models as a tag, else the embedded llama.cpp."""
    models = [resolve(ref, context) for ref in refs]
    server = reachable(context.settings)
    if server and all(model.tag for model in models):
        return BackendChoice(server.url, tuple(str(model.tag) for model in models))
    for model in models:
        model.need_gguf("chat")
    # A library tag brings its definition; anything else is a file.
    names = [model.tag if model.tag and server is None else str(model.gguf) for model in models]
    return BackendChoice("embedded", tuple(names))
