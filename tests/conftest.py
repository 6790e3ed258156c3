"""Session fixtures: one real Ollama server and one real registry for all tests that talk to them."""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.ollama_runtime import OllamaRuntime, RuntimeMissing, prepare_runtime
from tests.support.ollama_server import RealOllama
from tests.support.registry import RealRegistry

CACHE = Path(os.environ.get("AMIGO_TEST_CACHE") or Path(__file__).resolve().parent.parent / ".cache")


@pytest.fixture
def garbage_of_others_stays() -> Iterator[None]:
    """For what is timed: to go through all that the tests before have left takes up to 2 s. Its own is collected."""
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture(scope="session")
def ollama_runtime() -> OllamaRuntime:
    try:
        return prepare_runtime(CACHE / "ollama")
    except RuntimeMissing as missing:
        pytest.skip(f"no Ollama to test with: {missing}")


@pytest.fixture(scope="session")
def ollama_server(ollama_runtime: OllamaRuntime, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealOllama]:
    """Shared by the whole session: leave tags under names of your own."""
    folder = tmp_path_factory.mktemp("ollama")
    with RealOllama(ollama_runtime, folder, environment={"OLLAMA_DEBUG": "2"}) as server:  # 2: logs every prompt
        yield server


@pytest.fixture(scope="session")
def ollama_registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealRegistry]:
    try:
        registry = RealRegistry(tmp_path_factory.mktemp("registry"))
    except FileNotFoundError as missing:
        pytest.skip(str(missing))
    with registry:
        yield registry
