from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from amigo_local.domain.errors import Cancelled, InputError
from amigo_local.domain.events import AnyEvent, Note, Progress
from amigo_local.domain.modelfile import Modelfile
from amigo_local.serving.ollama_server import OllamaServer
from amigo_local.serving.ollama_store import open_tag
from tests.serving.conftest import Events
from tests.support.ollama_runtime import OllamaRuntime
from tests.support.ollama_server import RealOllama
from tests.support.registry import RealRegistry
from tests.support.tiny_gguf import write_tiny_llama

RATE = 2_000_000.0  # bytes a second: the model of 2.8 MB takes more than a second


@pytest.fixture(scope="module")
def pushed(
    ollama_server: RealOllama, ollama_registry: RealRegistry, tmp_path_factory: pytest.TempPathFactory
) -> tuple[str, Path]:
    """A tag in the registry, and the GGUF that it holds."""
    gguf = write_tiny_llama(
        tmp_path_factory.mktemp("pushed") / "pushed.gguf", seed=77, chat_template=None
    )  # each layer takes Ollama a second
    server = OllamaServer(ollama_server.host)
    tag = f"{ollama_registry.prefix}/pushed:v1"
    server.create(tag, gguf, Modelfile(), lambda event: None)
    server.client.push(tag, insecure=True)
    return tag, gguf


@pytest.fixture
def slow(ollama_registry: RealRegistry) -> Iterator[RealRegistry]:
    blobs = ollama_registry.blobs
    blobs.rate, blobs.sent_bytes = RATE, 0
    blobs.ranges.clear()
    yield ollama_registry
    blobs.rate, blobs.drop_after = 0, 0
    blobs.dropped.clear()


def after_a_third(act: Callable[[], None]) -> Callable[[AnyEvent], None]:
    def on(event: AnyEvent) -> None:
        if isinstance(event, Progress) and event.total and event.total > 1e6 and event.done > event.total / 3:
            act()

    return on


def stop() -> None:
    raise Cancelled


def assert_pulled(own: RealOllama, tag: str, gguf: Path) -> None:
    stored = open_tag(own.models, tag)
    assert hashlib.sha256(stored.gguf_path.read_bytes()).digest() == hashlib.sha256(gguf.read_bytes()).digest()
    assert stored.name == tag
    assert not list((own.models / "blobs").glob("*-partial*"))


def test_a_pull_cut_in_the_middle_goes_on_where_it_stopped(
    own_server: RealOllama, pushed: tuple[str, Path], slow: RealRegistry, events: Events
) -> None:
    tag, gguf = pushed
    server = OllamaServer(own_server.host)
    events.on = after_a_third(stop)
    with pytest.raises(Cancelled):
        server.pull(tag, events, insecure=True)
    assert not server.has(tag)
    events.on = lambda event: None
    events.clear()
    pulled = server.pull(tag, events, insecure=True)
    assert pulled.name == tag
    assert_pulled(own_server, tag, gguf)
    layer = [event for event in events if isinstance(event, Progress) and event.total == gguf.stat().st_size]
    assert layer[0].done > layer[0].total / 4  # it began with what the first pull left
    assert layer[-1].done == layer[-1].total
    assert max(int(r.removeprefix("bytes=").partition("-")[0] or 0) for r in slow.blobs.ranges) > layer[0].total / 4


def test_a_dropped_connection_mends_itself(
    own_server: RealOllama, pushed: tuple[str, Path], slow: RealRegistry, events: Events
) -> None:
    slow.blobs.rate, slow.blobs.drop_after = 0, 1_000_000
    OllamaServer(own_server.host).pull(pushed[0], events, insecure=True)
    assert slow.blobs.dropped
    assert_pulled(own_server, *pushed)


@pytest.mark.parametrize("prune", ["1", ""], ids=["keeping", "pruning"])
def test_a_server_killed_in_the_middle_of_a_pull_loses_at_most_the_unfinished_layer(
    ollama_runtime: OllamaRuntime,
    tmp_path: Path,
    pushed: tuple[str, Path],
    slow: RealRegistry,
    events: Events,
    prune: str,
) -> None:
    with RealOllama(ollama_runtime, tmp_path, environment={"OLLAMA_NOPRUNE": prune}) as own:
        server = OllamaServer(own.host, store=own.models)
        events.on = after_a_third(own.kill)
        with pytest.raises(
            InputError, match=r"went away while pulling .*; the same command goes on; with OLLAMA_NOPRUNE=1"
        ):
            server.pull(pushed[0], events, insecure=True)
        assert list((own.models / "blobs").glob("*-partial"))
        events.on = lambda event: None
        own.start()
        assert bool(list((own.models / "blobs").glob("*-partial"))) == bool(prune)
        slow.blobs.rate = 0
        server.pull(pushed[0], events, insecure=True)
        assert_pulled(own, *pushed)


def leave_an_empty_partial(own: RealOllama, pushed: tuple[str, Path], slow: RealRegistry, events: Events) -> None:
    events.on = after_a_third(stop)
    with pytest.raises(Cancelled):
        OllamaServer(own.host).pull(pushed[0], events, insecure=True)
    events.on = lambda event: None
    own.kill()
    (part,) = [path for path in (own.models / "blobs").glob("*-partial-0") if path.stat().st_size]
    part.write_bytes(b"")
    own.start()
    slow.blobs.rate = 0


def test_an_empty_partial_that_a_kill_left_is_mended(
    own_server: RealOllama, pushed: tuple[str, Path], slow: RealRegistry, events: Events
) -> None:
    leave_an_empty_partial(own_server, pushed, slow, events)
    OllamaServer(own_server.host, store=own_server.models).pull(pushed[0], events, insecure=True)
    assert any("unfinished files" in event.text for event in events if isinstance(event, Note))
    assert_pulled(own_server, *pushed)


def test_an_empty_partial_out_of_reach_is_explained(
    own_server: RealOllama, pushed: tuple[str, Path], slow: RealRegistry, events: Events, tmp_path: Path
) -> None:
    leave_an_empty_partial(own_server, pushed, slow, events)
    with pytest.raises(InputError, match="answers EOF, because a kill left an empty file") as caught:
        OllamaServer(own_server.host, store=tmp_path / "elsewhere").pull(pushed[0], events, insecure=True)
    assert "blobs/*-partial*" in caught.value.hint


def test_a_tag_that_the_registry_lacks_and_a_registry_that_is_down(
    server: OllamaServer, ollama_registry: RealRegistry, events: Events
) -> None:
    with pytest.raises(InputError, match=r"the registry has no localhost:.*/nothing:latest"):
        server.pull(f"{ollama_registry.prefix}/nothing", events, insecure=True)
    with pytest.raises(InputError, match=r"pulling localhost:9/a/b:latest: pull model manifest: .*connection refused"):
        server.pull("localhost:9/a/b", events, insecure=True)
