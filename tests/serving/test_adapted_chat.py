"""A base with an adapter applied at run time talks as the merged export of the two does."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import psutil
import pytest

from amigo_local.domain.errors import InputError
from amigo_local.domain.generation import GenerationOptions, Message
from amigo_local.domain.modelfile import Modelfile
from amigo_local.serving.embedded import AdaptedModel, EmbeddedBackend
from amigo_local.serving.library import Library
from amigo_local.weights.adapter_gguf import write_adapter_gguf
from amigo_local.weights.gguf_header import read_header
from amigo_local.weights.language_model import loadable
from amigo_local.weights.unpack import unpack
from tests.support.exporting import run
from tests.support.tiny_gguf import write_tiny_gemma3, write_tiny_llama
from tests.weights.conftest import write_adapter

QUESTION = Message("user", "Write a Python function that adds two numbers.")
GREEDY = GenerationOptions(max_tokens=24, context_length=256)


class Made(NamedTuple):
    base: Path
    adapter: Path
    """PEFT's directory."""
    lora: Path
    merged: Path
    """Base and adapter as one GGUF in float32."""


def make(base: Path, folder: Path, **settings: object) -> Made:
    unpack(base, folder / "checkpoint", "f32", lambda event: None)
    adapter = write_adapter(folder / "checkpoint", folder / "adapter", **settings)  # type: ignore[arg-type]
    write_adapter_gguf(adapter, base, folder / "lora.gguf")
    run(base, adapter, folder / "merged.gguf", "f32", lambda event: None)
    return Made(base, adapter, folder / "lora.gguf", folder / "merged.gguf")


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Made:
    folder = tmp_path_factory.mktemp("adapted-llama")
    return make(write_tiny_llama(folder / "llama.gguf", weight_type="f32"), folder)


@pytest.fixture(scope="module")
def gemma(tmp_path_factory: pytest.TempPathFactory) -> Made:
    folder = tmp_path_factory.mktemp("adapted-gemma")
    return make(write_tiny_gemma3(folder / "gemma.gguf", weight_type="f32", ollama_style=True), folder)


Start = Callable[..., EmbeddedBackend]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Adapted models by name -> a backend, closed at the end."""
    started: list[EmbeddedBackend] = []

    def backend(**adapters: AdaptedModel) -> EmbeddedBackend:
        started.append(EmbeddedBackend(Library(tmp_path / "library").get, adapters=adapters, threads=1))
        return started[-1]

    yield backend
    for each in started:
        each.close()


def ignore(text: str) -> None:
    pass


def said(backend: EmbeddedBackend, model: str, *messages: Message) -> str:
    return backend.generate(model, messages or (QUESTION,), GREEDY, ignore).text


def test_it_says_what_the_merged_export_says_and_not_what_the_base_says(start: Start, llama: Made) -> None:
    backend = start(stage1=AdaptedModel(llama.base, llama.lora))
    plain, adapted = said(backend, str(llama.base)), said(backend, "stage1")
    assert adapted == said(backend, str(llama.merged)) != plain
    # An adapter leaves no trace in what comes after it.
    assert [said(backend, model) for model in (str(llama.base), "stage1")] == [plain, adapted]


def test_a_library_gemma_with_a_vision_tower_talks_with_its_adapter(start: Start, gemma: Made, tmp_path: Path) -> None:
    with loadable(read_header(gemma.base), tmp_path) as base, loadable(read_header(gemma.merged), tmp_path) as merged:
        backend = start(stage1=AdaptedModel(base, gemma.lora))
        adapted = said(backend, "stage1")
        assert adapted == said(backend, str(merged)) != said(backend, str(base))
        backend.close()


def test_the_bases_definition_applies_to_it(start: Start, llama: Made, tmp_path: Path) -> None:
    system = Message("system", "You write Python.")
    plain = AdaptedModel(llama.base, llama.lora)
    defined = AdaptedModel(llama.base, llama.lora, Modelfile(system=system.content, parameters=(("stop", "zzz"),)))
    backend = start(plain=plain, defined=defined)
    assert said(backend, "defined") == said(backend, "plain", system, QUESTION) != said(backend, "plain")
    stop = said(backend, "plain")[5:9]
    stopping = start(stopping=AdaptedModel(llama.base, llama.lora, Modelfile(parameters=(("stop", stop),))))
    answer = stopping.generate("stopping", (QUESTION,), GREEDY, ignore)
    assert (answer.stop_reason, len(answer.text)) == ("stop", 5)


def _is_mapped(gguf: Path) -> bool:
    return any(entry.path == str(gguf) for entry in psutil.Process().memory_maps())


def test_unloading_asks_for_the_very_model(start: Start, llama: Made) -> None:
    backend = start(stage1=AdaptedModel(llama.base, llama.lora))
    first = backend.generate("stage1", (QUESTION,), GREEDY, ignore)
    backend.unload(str(llama.base))
    assert _is_mapped(llama.base)
    # The vocabulary is the base's: counting for it loads nothing.
    assert backend.count_tokens(str(llama.base), "def f():\n") == backend.count_tokens("stage1", "def f():\n") > 2
    kept = backend.generate("stage1", (QUESTION,), GREEDY, ignore)
    assert kept.text == first.text
    assert first.load_seconds > 10 * kept.load_seconds
    backend.unload("stage1")
    assert not _is_mapped(llama.base)


def test_unloading_frees_the_adapter(start: Start, llama: Made, tmp_path: Path) -> None:
    made = make(llama.base, tmp_path, r=256, scale=0.001)
    size = made.lora.stat().st_size
    assert size > 10 << 20
    backend = start(stage1=AdaptedModel(made.base, made.lora))

    def held() -> int:
        backend.generate("stage1", (QUESTION,), GenerationOptions(max_tokens=1, context_length=64), ignore)
        backend.unload("stage1")
        return int(psutil.Process().memory_full_info().uss)

    before, after = (min(held() for _ in range(6)) for _ in range(2))  # the allocator keeps a block now and then
    assert after - before < 2 * size


def test_what_llama_cpp_refuses_is_told_and_leaves_the_backend_usable(
    start: Start, llama: Made, gemma: Made, tmp_path: Path
) -> None:
    cut, text = tmp_path / "cut.gguf", tmp_path / "text.gguf"
    cut.write_bytes(llama.lora.read_bytes()[:-50_000])
    text.write_text("hello")
    narrow = write_tiny_llama(tmp_path / "q8.gguf")
    untied = make(write_tiny_llama(tmp_path / "untied.gguf", tied=False), tmp_path, target_modules=["lm_head"])
    backend = start(
        right=AdaptedModel(llama.base, llama.lora),
        on_q8=AdaptedModel(narrow, llama.lora),
        other_family=AdaptedModel(llama.base, gemma.lora),
        without_head=AdaptedModel(llama.base, untied.lora),
        a_model=AdaptedModel(llama.base, llama.base),
        cut=AdaptedModel(llama.base, cut),
        text=AdaptedModel(llama.base, text),
        absent=AdaptedModel(llama.base, tmp_path / "absent.gguf"),
    )
    expected = said(backend, "right")
    reasons = {
        "other_family": r"can't apply the adapter .*lora\.gguf to .*llama\.gguf: .*arch mismatch",
        "without_head": r"can't apply the adapter .*: .*'output\.weight' does not exist in base model",
        "a_model": r"can't apply the adapter .*llama\.gguf to .*: .*expect general\.type to be 'adapter'",
        "cut": r"can't apply the adapter .*cut\.gguf to .*: .*not within the file bounds",
        "text": r"text\.gguf is no GGUF: it begins with b'hell'",
        "absent": r"absent\.gguf can't be read: No such file",
    }
    for name, reason in reasons.items():
        with pytest.raises(InputError, match=reason):
            said(backend, name)
    assert said(backend, "right") == expected
    assert said(backend, "on_q8")  # another file of the same model takes it


def test_llama_cpp_writes_nothing_to_the_terminal(start: Start, llama: Made, capfd: pytest.CaptureFixture[str]) -> None:
    said(start(stage1=AdaptedModel(llama.base, llama.lora)), "stage1")
    assert capfd.readouterr() == ("", "")


@pytest.mark.slow
def test_smollm2_with_an_adapter_answers_as_its_export_does(start: Start, smollm2_gguf: Path, tmp_path: Path) -> None:
    made = make(smollm2_gguf, tmp_path, scale=0.005)
    backend = start(stage1=AdaptedModel(made.base, made.lora))
    plain, adapted, merged = (said(backend, model) for model in (str(made.base), "stage1", str(made.merged)))
    # A Q4_1 base rounds activations, a float32 export doesn't: later a near tie may fall differently.
    assert plain[:40] == adapted[:40] == merged[:40] == "```python\ndef add_numbers(num1, num2):\n "
    assert adapted != plain
    assert adapted[:66] == merged[:66]
