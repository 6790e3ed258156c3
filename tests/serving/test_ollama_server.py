from __future__ import annotations

import signal
import threading
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from amigo_local.domain.errors import Cancelled, InputError
from amigo_local.domain.events import AnyEvent, Note, Progress
from amigo_local.domain.generation import Message
from amigo_local.domain.modelfile import Modelfile
from amigo_local.serving.ollama_connection import is_loopback, server_url
from amigo_local.serving.ollama_details import definition_from_show
from amigo_local.serving.ollama_server import OllamaServer
from tests.serving.conftest import Events
from tests.support.ollama_server import RealOllama, free_port
from tests.support.tiny_gguf import write_tiny_llama

# What a Modelfile loses, JSON must carry: leading quotes, tabs, no-break spaces, emoji joiners.
HARD = '"quoted" \ttab\u00a0no-break 👩\u200d💻\n"""three"""\n  '
DEFINITION = Modelfile(
    template="{{ range .Messages }}<{{ .Role }}>\t{{ .Content }}\n{{ end }}",
    system=HARD,
    parameters=(
        ("num_ctx", 256),
        ("stop", "<|im_end|>"),
        ("stop", '"\n\t\u200d\x07'),
        ("temperature", 0.3),
        ("top_p", 1.0),
        ("use_mmap", True),
    ),
    messages=(Message("user", HARD), Message("assistant", "Yes.\n")),
    license=("Do as you please.",),
)


def test_a_created_tag_shows_the_definition_it_was_given(server: OllamaServer, tiny_gguf: Path, events: Events) -> None:
    created = server.create("round-trip", tiny_gguf, DEFINITION, events)
    details = server.show("round-trip")
    shown = definition_from_show(details)
    assert shown == Modelfile(
        **{**{f: getattr(DEFINITION, f) for f in DEFINITION.__struct_fields__}, "from_": details.name}
    )
    assert (details.architecture, details.context_length, details.quantization) == ("llama", 512, "Q8_0")
    assert "completion" in details.capabilities
    assert created.name == details.name == "round-trip:latest"
    assert created in server.tags()
    assert not created.remote and created.size_bytes > tiny_gguf.stat().st_size
    again = server.create("round-trip-2", tiny_gguf, shown, events)  # a copy made from what was shown is the same model
    assert again.digest == created.digest


def test_a_definition_without_stops_gets_none_from_the_files_chat_template(
    server: OllamaServer, tiny_gguf: Path, events: Events
) -> None:
    definition = Modelfile(template="{{ .Prompt }}", parameters=(("top_k", 7),))
    server.create("stopless", tiny_gguf, definition, events)
    assert server.show("stopless").parameters == (("top_k", 7),)
    server.create("detected", tiny_gguf, Modelfile(), events)
    assert ("stop", "<|im_end|>") in server.show("detected").parameters


def test_creating_tells_its_progress_in_bytes_and_uploads_once(
    server: OllamaServer, tmp_path: Path, events: Events
) -> None:
    gguf = write_tiny_llama(tmp_path / "fresh.gguf", seed=4711)
    server.create("fresh", gguf, Modelfile(), events)
    uploads = [e for e in events if isinstance(e, Progress) and e.label.startswith("copying")]
    assert uploads[-1].done == uploads[-1].total == gguf.stat().st_size
    events.clear()
    server.create("fresh", gguf, Modelfile(system="new"), events)
    assert not [e for e in events if isinstance(e, Progress) and e.label.startswith("copying")]
    (note,) = [event.text for event in events if isinstance(event, Note)]
    assert note.startswith("fresh:latest was there already (sha256:")


def test_an_unknown_tag_names_the_nearest(server: OllamaServer, tiny_gguf: Path, events: Events) -> None:
    server.create("gemma3-tiny:12b", tiny_gguf, Modelfile(), events)
    with pytest.raises(InputError, match=r"has no gemma3-tny:12b; the nearest are gemma3-tiny:12b") as caught:
        server.show("gemma3-tny:12b")
    assert caught.value.hint == "amigo-local pull gemma3-tny:12b"
    for call in (lambda: server.load("gemma3-tny:12b", 256), lambda: server.delete("gemma3-tny:12b")):
        with pytest.raises(InputError, match="has no gemma3-tny"):
            call()


def test_a_model_loads_answers_is_listed_and_lets_go(server: OllamaServer, tiny_gguf: Path, events: Events) -> None:
    server.create("loads", tiny_gguf, Modelfile(), events)
    assert 0 < server.load("loads", 256) < 30
    (loaded,) = [model for model in server.loaded() if model.name == "loads:latest"]
    assert loaded.size_bytes > 1_000_000
    events.clear()
    server.unload_all(events)
    assert server.loaded() == ()
    assert any("loads:latest" in event.text for event in events if isinstance(event, Note))
    server.unload("loads")  # not loaded: nothing happens
    server.delete("loads")
    assert not server.has("loads")


def test_a_truncated_gguf_creates_but_is_caught_when_loaded(
    server: OllamaServer, tiny_gguf: Path, tmp_path: Path, events: Events
) -> None:
    cut = tmp_path / "cut.gguf"
    cut.write_bytes(tiny_gguf.read_bytes()[:-500_000])
    server.create("cut", cut, Modelfile(), events)
    with pytest.raises(InputError, match="has cut:latest but can't load it: unable to load model") as caught:
        server.load("cut", 256)
    assert "ollama rm cut:latest" in caught.value.hint


def test_a_model_that_cannot_be_loaded_never_replaces_one_that_can(
    server: OllamaServer, tiny_gguf: Path, tmp_path: Path, events: Events
) -> None:
    older, load_seconds = server.create_checked("checked", tiny_gguf, Modelfile(system="old"), 256, events)
    assert load_seconds > 0
    cut = tmp_path / "cut.gguf"
    cut.write_bytes(tiny_gguf.read_bytes()[:-600_000])
    with pytest.raises(InputError, match="can't load it"):
        server.create_checked("checked", cut, Modelfile(system="new"), 256, events)
    assert server.find("checked") == older
    newer, _ = server.create_checked("checked", tiny_gguf, Modelfile(system="new"), 256, events)
    assert newer.digest != older.digest and server.show("checked").system == "new"
    assert any("checked:latest was there already" in event.text for event in events if isinstance(event, Note))
    assert not [entry.name for entry in server.tags() if "unchecked" in entry.name]


def test_a_file_that_is_no_gguf_and_one_that_is_not_there(server: OllamaServer, tmp_path: Path, events: Events) -> None:
    text = tmp_path / "model.gguf"
    text.write_text("hello" * 100)
    with pytest.raises(InputError, match="creating text:latest: supplied file was not in GGUF format"):
        server.create("text", text, Modelfile(), events)
    with pytest.raises(InputError, match=r"absent.gguf can't be read: No such file"):
        server.create("text", tmp_path / "absent.gguf", Modelfile(), events)
    with pytest.raises(InputError, match="can't be read: Is a directory"):
        server.create("text", tmp_path, Modelfile(), events)
    with pytest.raises(InputError, match="'no name!' is no Ollama model name"):
        server.create("no name!", text, Modelfile(), events)
    assert not server.has("text")


@pytest.mark.parametrize("moment", ["hashing", "copying", "creating own:latest: parsing GGUF"])
def test_a_server_that_dies_while_creating_loses_nothing(
    own_server: RealOllama, tmp_path: Path, events: Events, moment: str
) -> None:
    server = OllamaServer(own_server.host)
    older = server.create("own", write_tiny_llama(tmp_path / "old.gguf", seed=1), Modelfile(), events)

    def kill(event: AnyEvent) -> None:
        if isinstance(event, Progress) and event.label.startswith(moment):
            own_server.kill()

    events.on = kill
    newer = write_tiny_llama(tmp_path / "new.gguf", seed=2)
    with pytest.raises(InputError, match=r"went away while|no Ollama server answers at"):
        server.create("own", newer, Modelfile(), events)
    assert own_server.process is None
    events.on = lambda event: None
    own_server.start()
    if not moment.startswith("creating"):  # there the server may have finished before it died
        assert server.tags() == (older,)
    server.load("own", 256)
    assert server.create("own", newer, Modelfile(), events).digest != older.digest


def test_cancelling_an_upload_leaves_the_server_as_it_was(server: OllamaServer, tmp_path: Path, events: Events) -> None:
    def cancel(event: AnyEvent) -> None:
        if isinstance(event, Progress) and event.label.startswith("copying"):
            raise Cancelled

    events.on = cancel
    gguf = write_tiny_llama(tmp_path / "never.gguf", seed=99)
    with pytest.raises(Cancelled):
        server.create("never", gguf, Modelfile(), events)
    assert not server.has("never")


def test_no_server() -> None:
    server = OllamaServer(f"127.0.0.1:{free_port()}")
    assert not server.is_reachable()
    for call in (server.version, server.tags, server.loaded, lambda: server.show("x"), lambda: server.load("x", 1)):
        with pytest.raises(InputError, match=f"no Ollama server answers at {server.url}") as caught:
            call()
        assert "`ollama serve`" in caught.value.hint and "OLLAMA_HOST" in caught.value.hint


def test_something_else_on_the_port_is_not_taken_for_ollama() -> None:
    with ThreadingHTTPServer(("127.0.0.1", 0), SimpleHTTPRequestHandler) as other:
        threading.Thread(target=other.serve_forever, daemon=True).start()
        server = OllamaServer(f"127.0.0.1:{other.server_address[1]}")
        assert not server.is_reachable()
        with pytest.raises(InputError, match="404 File not found: is that an Ollama server"):
            server.tags()
        other.shutdown()


def test_a_server_that_hangs_is_unreachable_within_seconds(own_server: RealOllama) -> None:
    assert own_server.process is not None
    own_server.process.send_signal(signal.SIGSTOP)
    try:
        assert not OllamaServer(own_server.host).is_reachable()
    finally:
        own_server.process.send_signal(signal.SIGCONT)


def test_the_version_is_the_servers(server: OllamaServer, ollama_server: RealOllama) -> None:
    assert server.is_reachable()
    assert server.version() == ollama_server.runtime.version


@pytest.mark.parametrize(
    ("host", "url"),
    [
        ("", "http://127.0.0.1:11434"),
        ("1.2.3.4", "http://1.2.3.4:11434"),
        (":56789", "http://127.0.0.1:56789"),
        ("0.0.0.0", "http://127.0.0.1:11434"),
        ("0.0.0.0:8080", "http://127.0.0.1:8080"),
        ("[::]:8080", "http://[::1]:8080"),
        ("http://example.com", "http://example.com:80"),
        ("https://example.com/path/", "https://example.com:443/path"),
        ('"example.com:1"', "http://example.com:1"),
    ],
)
def test_ollama_host_is_read_as_ollama_reads_it(host: str, url: str) -> None:
    assert server_url(None, {"OLLAMA_HOST": host}) == url
    assert server_url("127.0.0.1:5", {"OLLAMA_HOST": host}) == "http://127.0.0.1:5"


def test_a_bad_address_is_told() -> None:
    with pytest.raises(InputError, match="'host:port' is no server address"):
        server_url("host:port")


def test_a_proxy_never_stands_before_this_machine(ollama_server: RealOllama, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    assert OllamaServer(ollama_server.host).version()
    assert [is_loopback(f"http://{name}:1") for name in ("localhost", "127.0.0.1", "[::1]", "example.com")] == [
        *(True, True, True, False)
    ]
