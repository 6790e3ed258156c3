"""Who serves: the Ollama server when one answers, else the embedded llama.cpp and our library."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from amigo_local.domain.errors import InputError
from amigo_local.domain.settings import ProgramSettings
from amigo_local.engine.contract import StageContext

if TYPE_CHECKING:
    from amigo_local.serving.library import Library
    from amigo_local.serving.ollama_server import OllamaServer


def ollama_server(settings: ProgramSettings) -> OllamaServer:
    """The configured server, whether or not it answers."""
    from amigo_local.serving.ollama_server import OllamaServer

    store = Path(settings.ollama.store) if settings.ollama.store else None
    return OllamaServer(settings.ollama.host, store)


def reachable(settings: ProgramSettings) -> OllamaServer | None:
    """The server, when it is to be used and answers."""
    if not settings.ollama.use:
        return None
    server = ollama_server(settings)
    return server if server.is_reachable() else None


def library(context: StageContext) -> Library:
    """Our own folder of registered models in this home."""
    from amigo_local.serving.library import Library

    return Library(context.workspace.library_dir)


def served_by(settings: ProgramSettings) -> str:
    """The address that part of a fingerprint needs: a tag on one server says nothing of another."""
    server = reachable(settings)
    return server.url if server else "library"


def need_embedded() -> None:
    """Raises InputError when llama-cpp-python is missing."""
    import importlib.util

    if importlib.util.find_spec("llama_cpp") is None:
        raise InputError(
            "no Ollama server answers, and llama-cpp-python is not installed",
            "start one (ollama serve), or: pip install 'amigo-local[weights]'",
        )
