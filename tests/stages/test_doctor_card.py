"""doctor holds the card that nvidia-smi sees against the libraries that are to use it."""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from amigo_local.domain.events import AnyEvent, Note
from amigo_local.stages import doctor

CARD = "NVIDIA GeForce RTX 4050 Laptop GPU"


def problems(context_gpu: str | None) -> tuple[int, list[AnyEvent]]:
    events: list[AnyEvent] = []
    context: Any = SimpleNamespace(machine=SimpleNamespace(gpu_name=context_gpu), emit=events.append)
    return doctor._card(context), events


@pytest.mark.skipif(Path("/proc/driver/nvidia").exists(), reason="needs a machine without an NVIDIA card")
def test_a_card_that_torch_cannot_reach_is_told_with_the_fix(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "nvidia-smi"
    program.write_text('#!/bin/sh\ncase "$1" in *gpu=*) echo "6141, 5800";; esac\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    count, (note,) = problems(CARD)
    assert count == 1
    assert isinstance(note, Note)
    assert CARD in note.text and "training would run on the processor" in note.text
    assert note.fix


def test_a_card_that_is_only_planned_is_not_asked_about(monkeypatch: pytest.MonkeyPatch) -> None:
    """--set machine.vram=6GiB on a machine without one."""
    monkeypatch.setenv("PATH", "/nowhere")
    assert problems("planned GPU") == (0, [])
