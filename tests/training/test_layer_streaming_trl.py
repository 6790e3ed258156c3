"""Streamed layers under TRL's trainers as they come: losses, gradients, checkpoints and adapters as when resident."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from amigo_local.training.process import quiet_and_offline
from tests.support.quantized_model import LAYERS, load_nf4
from tests.support.streaming_proof import ENGINES, HooksOnLayers, Record, TinyGemma, compare, streaming
from tests.support.trl_runs import run_dpo, run_sft

WEIGHTS = LAYERS * 7 * 2


@pytest.fixture(scope="module", autouse=True)
def offline() -> Iterator[None]:
    with quiet_and_offline():
        yield


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("trl")


@pytest.fixture(scope="module")
def gemma(folder: Path) -> TinyGemma:
    return TinyGemma(folder / "base")


@pytest.fixture(scope="module")
def resident_sft(gemma: TinyGemma, folder: Path) -> Record:
    return run_sft(load_nf4(gemma.base), gemma.base, folder / "sft")


def test_sft_with_evaluation_and_checkpoints_is_bit_identical_and_resumes_so(
    gemma: TinyGemma, folder: Path, resident_sft: Record, tmp_path: Path
) -> None:
    """The streamer is attached before TRL wraps the model."""
    model = load_nf4(gemma.base)
    with streaming(model, gemma.packs, ENGINES["ring"](), resident=(1,)):
        found = run_sft(model, gemma.base, tmp_path)
    # Losses and gradient norms of three steps and the losses of two evaluations besides.
    assert compare(resident_sft, found) == (4 * WEIGHTS + 8, 4 * WEIGHTS + 8)
    saved = load_file(tmp_path / "checkpoint-2" / "adapter_model.safetensors")
    assert compare(load_file(folder / "sft" / "checkpoint-2" / "adapter_model.safetensors"), saved).identical

    # Against TRL resumed resident: it casts the adapter to f32 then, so that itself it departs from a run in one go.
    resumed = run_sft(load_nf4(gemma.base), gemma.base, folder / "sft", resume=True)
    model = load_nf4(gemma.base)
    with streaming(model, gemma.packs, ENGINES["late"](), slots=3):
        found = run_sft(model, gemma.base, tmp_path, resume=True)
    assert compare(resumed, found) == (2 * WEIGHTS + 8, 2 * WEIGHTS + 8)


def start_of_dpo(base: Path, folder: Path, start: str) -> Any:
    """`pretrained`: the adapter that SFT left, of which TRL keeps a copy named "ref" as the reference."""
    model = load_nf4(base)
    if start == "pretrained":
        from peft import PeftModel

        model = PeftModel.from_pretrained(model, folder / "sft" / "checkpoint-3", is_trainable=True)
    return model


@pytest.mark.parametrize(
    ("start", "precompute", "engine", "slots", "kept"),
    [
        ("pretrained", False, "now and then late", 2, (3,)),
        pytest.param("pretrained", True, "late", 1, (), marks=pytest.mark.slow),
        pytest.param("fresh", False, "ring, late", 2, (), marks=pytest.mark.slow),
        pytest.param("fresh", True, "ring", 3, (0,), marks=pytest.mark.slow),
    ],
)
def test_dpo_and_its_reference_are_bit_identical(
    gemma: TinyGemma,
    folder: Path,
    resident_sft: Record,
    tmp_path: Path,
    start: str,
    precompute: bool,
    engine: str,
    slots: int,
    kept: tuple[int, ...],
) -> None:
    resident = run_dpo(start_of_dpo(gemma.base, folder, start), gemma.base, tmp_path, precompute=precompute)
    model = start_of_dpo(gemma.base, folder, start)
    with streaming(model, gemma.packs, ENGINES[engine](), slots=slots, resident=kept):
        found = run_dpo(model, gemma.base, tmp_path, precompute=precompute)
    # Two steps' losses, gradient norms, rewards, and two figures of two evaluations besides.
    assert compare(resident, found) == (3 * WEIGHTS + 10, 3 * WEIGHTS + 10)
    if start == "pretrained":
        assert "ref" in model.peft_config
    assert all(torch.isfinite(value).all() for value in found.values())


@pytest.mark.slow
def test_under_trl_too_hooks_on_decoder_layers_are_wrong(
    gemma: TinyGemma, resident_sft: Record, tmp_path: Path
) -> None:
    model = load_nf4(gemma.base)
    with streaming(model, gemma.packs, ENGINES["at once"](), kind=HooksOnLayers):
        found = run_sft(model, gemma.base, tmp_path)
    assert compare(resident_sft, found).equal < len(found) // 3
