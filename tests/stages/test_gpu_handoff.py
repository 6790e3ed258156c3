"""The card changes hands: a real Ollama server lets go, a simulated card is freed, and the model answers again."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from amigo_local.domain.events import AnyEvent, LoadedModel, Note
from amigo_local.domain.machine import Machine
from amigo_local.domain.modelfile import Modelfile
from amigo_local.domain.units import MIB
from amigo_local.serving.ollama_server import OllamaServer
from amigo_local.stages import _gpu_handoff as handoff
from amigo_local.stages._gpu_handoff import GpuMemory, GpuProcess, hand_over_gpu, parse_nvidia_smi, read_nvidia_smi
from tests.support.ollama_server import RealOllama
from tests.support.tiny_gguf import write_tiny_llama

TOTAL = 6141
DESKTOP = "2201, 310, /usr/bin/gnome-shell\n"


def smi(free: int, apps: str = DESKTOP) -> GpuMemory:
    """What the two queries print, through the parser."""
    return parse_nvidia_smi(f"{TOTAL}, {free}\n", apps)


class Card:
    """Gives its memory back a while after the runner ended; the clock moves as one sleeps."""

    def __init__(self, *readings: GpuMemory) -> None:
        self.readings, self.now, self.slept = list(readings), 0.0, 0

    def read(self) -> GpuMemory:
        return self.readings.pop(0) if len(self.readings) > 1 else self.readings[0]

    def sleep(self, seconds: float) -> None:
        self.now += seconds
        self.slept += 1

    def clock(self) -> float:
        return self.now


class OnTheCard(OllamaServer):
    """A real server whose models are told to lie on a card, which no server has here."""

    def loaded(self) -> tuple[LoadedModel, ...]:
        return tuple(
            LoadedModel(name=m.name, size_bytes=5000 * MIB, size_vram_bytes=4000 * MIB) for m in super().loaded()
        )


@pytest.fixture(scope="module")
def server(ollama_server: RealOllama, tmp_path_factory: pytest.TempPathFactory) -> Iterator[OnTheCard]:
    made = OnTheCard(ollama_server.host)
    made.create(
        "handed-over", write_tiny_llama(tmp_path_factory.mktemp("tiny") / "t.gguf"), Modelfile(), lambda e: None
    )
    yield made
    made.delete("handed-over")


def hand_over(server: OllamaServer | None, card: Card) -> list[AnyEvent]:
    events: list[AnyEvent] = []
    hand_over_gpu(server, events.append, read_gpu=card.read, clock=card.clock, sleep=card.sleep)
    return events


def test_a_plan_counts_on_what_the_server_will_let_go_of(server: OnTheCard) -> None:
    card = Machine(
        platform="linux",
        cpu_count=2,
        ram_total_bytes=0,
        ram_available_bytes=0,
        disk_free_bytes=0,
        gpu_name="a card",
        vram_total_bytes=TOTAL * MIB,
        vram_free_bytes=1500 * MIB,
    )
    server.unload_all(lambda event: None)  # other tests' models, too
    assert handoff.handed_over(card, server) == handoff.handed_over(card, None) == card
    server.load("handed-over", 256)
    assert handoff.handed_over(card, server).vram_free_bytes == 5500 * MIB
    nearly_free = msgspec.structs.replace(card, vram_free_bytes=3000 * MIB)
    assert handoff.handed_over(nearly_free, server).vram_free_bytes == TOTAL * MIB
    without = msgspec.structs.replace(card, gpu_name=None, vram_total_bytes=None, vram_free_bytes=None)
    assert handoff.handed_over(without, server) == without
    server.unload("handed-over")


def test_it_unloads_waits_for_the_memory_says_so_and_the_model_answers_again(server: OnTheCard) -> None:
    assert server.load("handed-over", 256) > 0
    with_ollama = DESKTOP + "4242, 4000, /usr/local/bin/ollama\n"
    card = Card(smi(1500, with_ollama), smi(1500, with_ollama), smi(2600, with_ollama), smi(5600))
    events = hand_over(server, card)
    assert server.loaded() == ()
    assert card.slept == 2  # until the third reading after the unload
    assert events == [
        Note("unloaded handed-over:latest from Ollama, which held 4.9 GiB, 3.9 GiB of it VRAM"),
        Note("4.0 GiB of VRAM came back: 5.5 GiB of 6.0 GiB are free", "good"),
        Note(
            "the card is also used by /usr/bin/gnome-shell (pid 2201, 310.0 MiB)",
            fix="close them if the plan lacks VRAM",
        ),
    ]
    assert server.load("handed-over", 256) > 0  # loads and generates
    assert [model.name for model in server.loaded()] == ["handed-over:latest"]
    server.unload("handed-over")


def test_memory_that_does_not_come_back_is_told_and_training_goes_on(server: OnTheCard) -> None:
    server.load("handed-over", 256)
    card = Card(smi(1500), smi(2000))
    events = hand_over(server, card)
    assert handoff.WAIT_SECONDS <= card.now < handoff.WAIT_SECONDS + 1
    warning = next(event for event in events if isinstance(event, Note) and event.level == "warning")
    assert warning.text == "500.0 MiB of VRAM came back in 30 s, of 3.9 GiB that Ollama held"
    assert "ollama ps" in warning.fix


def test_where_nothing_is_loaded_or_no_server_answers_nothing_is_waited_for(server: OnTheCard) -> None:
    for asked in (server, None):
        card = Card(smi(5800, ""))
        assert hand_over(asked, card) == []
        assert card.slept == 0


def test_without_a_card_models_are_unloaded_all_the_same(server: OnTheCard) -> None:
    server.load("handed-over", 256)
    events: list[AnyEvent] = []
    hand_over_gpu(server, events.append, read_gpu=lambda: None)
    assert server.loaded() == ()
    assert len(events) == 1


def test_processes_are_named_with_pid_and_size_where_the_driver_tells() -> None:
    lines = (
        "77, [N/A], C:\\Games\\game, the.exe",
        f"{os.getpid()}, 120, python",
        "5, 900, /opt/blender",
        "9, [Insufficient Permissions], x",
    )
    apps = "\n".join(lines)
    (note,) = hand_over(None, Card(smi(4000, apps)))
    assert isinstance(note, Note)
    assert (
        note.text
        == "the card is also used by /opt/blender (pid 5, 900.0 MiB), C:\\Games\\game, the.exe (pid 77), x (pid 9)"
    )


def test_nvidia_smis_lines_are_parsed() -> None:
    assert parse_nvidia_smi("6141, 5800\n24564, 24000\n", "") == GpuMemory(29800 * MIB, 30705 * MIB, ())
    assert smi(100, "No running processes found\n").processes == ()
    assert smi(100).processes == (GpuProcess(2201, "/usr/bin/gnome-shell", 310 * MIB),)
    for nonsense in (
        "",
        "NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver.\n",
        "[N/A], [N/A]\n",
    ):
        with pytest.raises(ValueError):
            parse_nvidia_smi(nonsense, "")


@pytest.mark.parametrize(
    ("script", "found"),
    [
        ('case "$1" in *gpu=*) echo "6141, 5800";; *) echo "7, 100, ollama";; esac', (5800 * MIB, 1)),
        ("echo broken driver; exit 9", None),
    ],
)
def test_nvidia_smi_is_asked_and_its_failure_means_no_card(
    script: str, found: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = tmp_path / "nvidia-smi"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    read = read_nvidia_smi()
    assert (read and (read.free_bytes, len(read.processes))) == found
