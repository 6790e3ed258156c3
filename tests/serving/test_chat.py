"""Both backends on the same GGUF: the Ollama server is the reference for the embedded llama.cpp, and the other way."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from amigo_local.domain.errors import AmigoError, Cancelled, InputError
from amigo_local.domain.generation import GenerationOptions, Message
from amigo_local.domain.modelfile import Modelfile
from amigo_local.serving.embedded import EmbeddedBackend
from amigo_local.serving.library import Library
from amigo_local.serving.ollama_chat import OllamaBackend, sampling_options
from amigo_local.serving.ollama_server import OllamaServer
from amigo_local.serving.templates import family
from tests.serving.conftest import Events
from tests.support.ollama_server import RealOllama
from tests.support.tiny_gguf import write_tiny_gemma3, write_tiny_llama

SYSTEM = Message("system", "You write Python.")
QUESTION = Message("user", "Write a Python function that adds two numbers.")
GREEDY = GenerationOptions(max_tokens=18, context_length=512)


@pytest.fixture
def library(tmp_path: Path) -> Library:
    return Library(tmp_path / "library")


@pytest.fixture
def embedded(library: Library) -> Iterator[EmbeddedBackend]:
    backend = EmbeddedBackend(library.get, threads=1)
    yield backend
    backend.close()


@pytest.fixture
def ollama_backend(server: OllamaServer) -> OllamaBackend:
    return OllamaBackend(server)


def ignore(text: str) -> None:
    pass


def test_ollama_and_embedded_give_the_same_greedy_answer(
    server: OllamaServer,
    ollama_backend: OllamaBackend,
    embedded: EmbeddedBackend,
    library: Library,
    smollm2_gguf: Path,
    events: Events,
) -> None:
    definition = family("chatml").definition
    server.create("smollm2", smollm2_gguf, definition, events)
    library.register("smollm2", smollm2_gguf, definition)
    pieces: list[str] = []
    theirs = ollama_backend.generate("smollm2", (SYSTEM, QUESTION), GREEDY, pieces.append)
    ours = embedded.generate("smollm2", (SYSTEM, QUESTION), GREEDY, ignore)
    assert theirs.text == "".join(pieces)
    assert len(pieces) > 10
    assert ours.prompt_tokens == theirs.prompt_tokens == 27
    assert ours.answer_tokens == theirs.answer_tokens == 18
    assert ours.text[:40] == theirs.text[:40]  # two versions of llama.cpp: later a near tie may fall differently
    assert theirs.text.startswith("```python\ndef add_two_numbers(")
    assert (ours.tokens_before_code, theirs.tokens_before_code) == (0, 0)
    for answer in (ours, theirs):
        assert answer.stop_reason == "length"
        assert answer.load_seconds > 0 and answer.prompt_seconds > 0 and answer.answer_seconds > 0
        assert answer.first_token_seconds is not None
        assert 0.9 * answer.prompt_seconds < answer.first_token_seconds
        assert answer.first_token_seconds < answer.prompt_seconds + answer.answer_seconds
    server.unload("smollm2")


CONVERSATIONS = [
    (Message("user", "Grüße aus 東京 🙂, x == 1"),),
    (SYSTEM, QUESTION),
    (SYSTEM, Message("user", "a"), Message("assistant", "b <|im_end|> c"), Message("user", "d")),
    (Message("user", "a"), Message("user", "b\n\n  c")),
]


def test_prompts_have_the_same_token_counts_on_both_sides(
    server: OllamaServer,
    ollama_backend: OllamaBackend,
    embedded: EmbeddedBackend,
    tiny_gguf: Path,
    events: Events,
) -> None:
    server.create("tiny-chatml", tiny_gguf, family("chatml").definition, events)
    one = GenerationOptions(max_tokens=1, context_length=512)
    theirs = [ollama_backend.generate("tiny-chatml", m, one, ignore).prompt_tokens for m in CONVERSATIONS]
    ours = [embedded.generate(str(tiny_gguf), m, one, ignore).prompt_tokens for m in CONVERSATIONS]
    assert ours == theirs
    assert min(ours) > 10


def test_a_model_loaded_ahead_tells_its_load_time_with_the_next_answer(
    embedded: EmbeddedBackend, library: Library, tiny_gguf: Path
) -> None:
    options = GenerationOptions(max_tokens=2, context_length=256)
    embedded.load(str(tiny_gguf), 256)
    first, second = (embedded.generate(str(tiny_gguf), (QUESTION,), options, ignore) for _ in range(2))
    assert first.load_seconds > 10 * second.load_seconds
    assert first.first_token_seconds is not None
    library.register("silent", tiny_gguf, Modelfile(parameters=(("stop", first.text[:1]),)))
    silent = embedded.generate("silent", (QUESTION,), options, ignore)
    assert (silent.text, silent.first_token_seconds) == ("", None)


def test_sampling_is_seeded_and_explicit(embedded: EmbeddedBackend, tiny_gguf: Path) -> None:
    def answer(**changes: float | int) -> str:
        options = GenerationOptions(
            **{"temperature": 1.5, "seed": 7, "max_tokens": 16, "context_length": 256} | changes
        )
        return embedded.generate(str(tiny_gguf), (QUESTION,), options, ignore).text

    assert answer() == answer()
    assert answer() != answer(seed=8)
    greedy = answer(temperature=0.0)
    assert answer(top_k=1) == answer(top_p=1e-6, top_k=0) == answer(min_p=1.0, top_k=0) == greedy
    repeated = answer(temperature=0.0, max_tokens=60)
    assert answer(temperature=0.0, max_tokens=60, repeat_penalty=1e6) != repeated


def test_every_option_is_sent_to_ollama() -> None:
    sent = sampling_options(GenerationOptions(temperature=0.5, seed=3, max_tokens=9, context_length=777))
    assert sent == {
        **{"temperature": 0.5, "top_k": 40, "top_p": 0.95, "min_p": 0.0, "repeat_penalty": 1.0, "seed": 3},
        **{"num_predict": 9, "num_ctx": 777, "repeat_last_n": 64},
        **{"typical_p": 1.0, "presence_penalty": 0.0, "frequency_penalty": 0.0},
    }


def test_an_answer_does_not_depend_on_what_was_asked_before(embedded: EmbeddedBackend, tiny_gguf: Path) -> None:
    options = GenerationOptions(max_tokens=12, context_length=256)
    first = embedded.generate(str(tiny_gguf), (QUESTION,), options, ignore)
    embedded.generate(str(tiny_gguf), (QUESTION, Message("assistant", "x"), QUESTION), options, ignore)
    again = embedded.generate(str(tiny_gguf), (QUESTION,), options, ignore)
    assert again.text == first.text
    assert first.load_seconds > 10 * again.load_seconds  # it stayed loaded


def test_the_definitions_system_and_stops_apply(embedded: EmbeddedBackend, library: Library, tiny_gguf: Path) -> None:
    options = GenerationOptions(max_tokens=12, context_length=256)
    plain = embedded.generate(str(tiny_gguf), (QUESTION,), options, ignore)
    stop = plain.text[5:9]
    library.register("plain", tiny_gguf, Modelfile(parameters=(("stop", stop),)))
    stopped = embedded.generate("plain", (QUESTION,), options, ignore)
    assert stopped.text == plain.text[: plain.text.index(stop)]
    assert (stopped.stop_reason, plain.stop_reason) == ("stop", "length")
    library.register("with-system", tiny_gguf, Modelfile(system=SYSTEM.content))
    by_definition = embedded.generate("with-system", (QUESTION,), options, ignore)
    assert by_definition.text == embedded.generate(str(tiny_gguf), (SYSTEM, QUESTION), options, ignore).text
    assert by_definition.prompt_tokens > plain.prompt_tokens


@pytest.mark.parametrize("architecture", ["llama", "gemma3"])
def test_a_gguf_without_chat_template_takes_its_familys(
    embedded: EmbeddedBackend, tmp_path: Path, architecture: str
) -> None:
    write = write_tiny_llama if architecture == "llama" else write_tiny_gemma3
    bare = write(tmp_path / "bare.gguf", chat_template=None)
    template = family("chatml" if architecture == "llama" else "gemma3").jinja
    told = write(tmp_path / "told.gguf", chat_template=template)
    options = GenerationOptions(max_tokens=6, context_length=256)
    answers = [embedded.generate(str(path), (SYSTEM, QUESTION), options, ignore) for path in (bare, told)]
    assert answers[0].text == answers[1].text
    assert answers[0].prompt_tokens == answers[1].prompt_tokens


def test_a_template_that_writes_bos_does_not_double_it(embedded: EmbeddedBackend, tmp_path: Path) -> None:
    plain = write_tiny_gemma3(tmp_path / "plain.gguf", chat_template=family("gemma3").jinja)
    with_bos = write_tiny_gemma3(tmp_path / "bos.gguf", chat_template="{{ bos_token }}" + family("gemma3").jinja)
    one = GenerationOptions(max_tokens=1, context_length=128)
    counts = [embedded.generate(str(path), (QUESTION,), one, ignore).prompt_tokens for path in (plain, with_bos)]
    assert counts[0] == counts[1]


def test_what_the_embedded_backend_refuses(embedded: EmbeddedBackend, tiny_gguf: Path, tmp_path: Path) -> None:
    small = GenerationOptions(max_tokens=4, context_length=256)
    long = Message("user", "word " * 600)
    with pytest.raises(InputError, match=r"the prompt has \d{3,} tokens; .* is loaded with a context of 256"):
        embedded.generate(str(tiny_gguf), (long,), small, ignore)
    cut = tmp_path / "cut.gguf"
    cut.write_bytes(tiny_gguf.read_bytes()[:-500_000])
    with pytest.raises(InputError, match=r"can't load .*cut.gguf: .*not within the file bounds"):
        embedded.generate(str(cut), (QUESTION,), small, ignore)
    text = tmp_path / "text.gguf"
    text.write_text("hello")
    with pytest.raises(InputError, match=r"text.gguf is no GGUF: it begins with b'hell'"):
        embedded.generate(str(text), (QUESTION,), small, ignore)
    with pytest.raises(InputError, match=r"absent.gguf can't be read"):
        embedded.generate(str(tmp_path / "absent.gguf"), (QUESTION,), small, ignore)
    with pytest.raises(InputError, match=r"the library .* has no absent"):
        embedded.generate("absent", (QUESTION,), small, ignore)


def test_the_context_is_cut_to_what_the_model_knows_and_ends_the_answer(
    embedded: EmbeddedBackend, tiny_gguf: Path
) -> None:
    options = GenerationOptions(max_tokens=4000, context_length=100_000)
    answer = embedded.generate(str(tiny_gguf), (QUESTION,), options, ignore)
    assert answer.stop_reason in ("length", "stop")
    if answer.stop_reason == "length":
        assert answer.prompt_tokens + answer.answer_tokens == 512


def test_one_model_is_loaded_at_a_time_and_unload_frees_it(
    embedded: EmbeddedBackend, tiny_gguf: Path, tmp_path: Path
) -> None:
    import psutil

    other = write_tiny_llama(tmp_path / "other.gguf", seed=5)

    def mapped() -> set[str]:
        """Of these two: other tests of this process may keep theirs."""
        ours = {str(tiny_gguf), str(other)}
        return {Path(entry.path).name for entry in psutil.Process().memory_maps() if entry.path in ours}

    one = GenerationOptions(max_tokens=1, context_length=128)
    embedded.generate(str(tiny_gguf), (QUESTION,), one, ignore)
    assert mapped() == {"tiny.gguf"}
    embedded.generate(str(other), (QUESTION,), one, ignore)
    assert mapped() == {"other.gguf"}
    embedded.unload(str(tiny_gguf))
    assert mapped() == {"other.gguf"}
    embedded.unload(str(other))
    assert mapped() == set()
    assert embedded.count_tokens(str(tiny_gguf), "def f():\n") > 2


def test_a_cancelled_answer_leaves_both_backends_usable(
    server: OllamaServer, ollama_backend: OllamaBackend, embedded: EmbeddedBackend, tiny_gguf: Path, events: Events
) -> None:
    def cancel(text: str) -> None:
        raise Cancelled

    server.create("cancelled", tiny_gguf, Modelfile(), events)
    options = GenerationOptions(max_tokens=8, context_length=256)
    for backend, model in ((ollama_backend, "cancelled"), (embedded, str(tiny_gguf))):
        with pytest.raises(Cancelled):
            backend.generate(model, (QUESTION,), options, cancel)
        assert backend.generate(model, (QUESTION,), options, ignore).answer_tokens == 8
        backend.unload(model)


def test_chatting_with_a_tag_that_is_not_there(ollama_backend: OllamaBackend, server: OllamaServer) -> None:
    with pytest.raises(InputError, match="has no nobody-knows-it"):
        ollama_backend.generate("nobody-knows-it", (QUESTION,), GREEDY, ignore)
    assert ollama_backend.name == f"Ollama {server.version()} at {server.url}"


def test_a_server_that_dies_while_answering(own_server: RealOllama, tiny_gguf: Path, events: Events) -> None:
    server = OllamaServer(own_server.host)
    server.create("dies", tiny_gguf, Modelfile(), events)
    backend, began = OllamaBackend(server), time.monotonic()
    with pytest.raises(InputError, match="went away while dies was answering"):
        backend.generate(
            "dies",
            (QUESTION,),
            GenerationOptions(max_tokens=50_000, context_length=512),
            lambda text: own_server.kill(),
        )
    assert time.monotonic() - began < 30


def test_a_model_that_cannot_be_loaded_fails_with_the_servers_words(
    server: OllamaServer, ollama_backend: OllamaBackend, tiny_gguf: Path, tmp_path: Path, events: Events
) -> None:
    cut = tmp_path / "cut.gguf"
    cut.write_bytes(tiny_gguf.read_bytes()[:-400_000])
    server.create("cut-chat", cut, Modelfile(), events)
    with pytest.raises(AmigoError, match="cut-chat failed while answering: unable to load model"):
        ollama_backend.generate("cut-chat", (QUESTION,), GREEDY, ignore)


def test_llama_cpp_writes_nothing_to_the_terminal(
    embedded: EmbeddedBackend, tiny_gguf: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    embedded.generate(str(tiny_gguf), (QUESTION,), GenerationOptions(max_tokens=2, context_length=128), ignore)
    assert capfd.readouterr() == ("", "")


def test_without_llama_cpp_the_embedded_backend_says_what_to_install() -> None:
    script = (
        "import sys; sys.modules['llama_cpp'] = None\n"
        "from amigo_local.domain.errors import InputError\n"
        "try: import amigo_local.serving.embedded\n"
        "except InputError as error: print(error.hint)"
    )
    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert "pip install 'amigo-local[weights]'" in ran.stdout, ran.stderr


def test_importing_the_room_costs_nothing() -> None:
    script = (
        "import sys, amigo_local.serving\n"
        "print([name for name in ('ollama', 'httpx', 'llama_cpp', 'jinja2', 'numpy', 'torch') if name in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", script], capture_output=True, text=True).stdout.strip() == "[]"


def test_two_models_answer_one_after_the_other_each_loaded_apart(
    server: OllamaServer, ollama_backend: OllamaBackend, tmp_path: Path, events: Events
) -> None:
    answers = []
    server.unload_all(events)
    for name, seed in (("ab-old", 1), ("ab-new", 2)):
        server.create(name, write_tiny_llama(tmp_path / f"{name}.gguf", seed=seed), Modelfile(), events)
        answers.append(ollama_backend.generate(name, (QUESTION,), GREEDY, ignore))
        assert [model.name for model in server.loaded()] == [f"{name}:latest"]
        ollama_backend.unload(name)
        assert server.loaded() == ()
    assert answers[0].text != answers[1].text
    assert all(answer.load_seconds > answer.prompt_seconds for answer in answers)
