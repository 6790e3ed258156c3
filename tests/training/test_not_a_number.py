"""A loss or a gradient that is no number stops the run before the optimizer sees it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch

from amigo_local.domain.errors import AmigoError
from amigo_local.domain.memory_plan import MemoryPlan
from amigo_local.training.frozen_base import FrozenBase, LoadedBase, base_from_checkpoint
from amigo_local.training.sample_file import SampleFile
from amigo_local.training.samples import training_order
from amigo_local.training.sft import train_sft
from amigo_local.training.training_run import TrainingRun

from .conftest import PLAN, SETTINGS, Train, files

BAD_STEP = 5


@pytest.fixture(scope="module")
def lines(tiny_dataset: Path) -> list[int]:
    """Of the samples that step 5 trains on, in train.jsonl."""
    lengths = SampleFile(tiny_dataset / "train.jsonl", 512).lengths
    batch = SETTINGS.effective_batch
    return [index + 1 for index in training_order(lengths, SETTINGS)[(BAD_STEP - 1) * batch : BAD_STEP * batch]]


def base_with(hook: Any, checkpoint: Path) -> FrozenBase:
    plain = base_from_checkpoint(checkpoint, SETTINGS, "tiny")

    def load(plan: MemoryPlan) -> LoadedBase:
        model = plain.load(plan).model
        model.model.layers[0].register_forward_hook(hook)
        return LoadedBase(model)

    return msgspec.structs.replace(plain, load=load)


class Spoiler:
    """Spoils the nth micro-batch: its hidden states, or their gradient."""

    def __init__(self, nth: int, value: float, gradient: bool = False) -> None:
        self.nth, self.value, self.gradient, self.count = nth, value, gradient, 0

    def __call__(self, module: Any, args: Any, output: torch.Tensor) -> torch.Tensor | None:
        self.count += 1
        if self.count != self.nth:
            return None
        if self.gradient:
            output.register_hook(lambda gradient: torch.full_like(gradient, self.value))
            return None
        return output + self.value


def failure(spoiler: Spoiler, base: Path, dataset: Path, out: Path) -> AmigoError:
    with pytest.raises(AmigoError) as failed:
        train_sft(TrainingRun(SETTINGS, PLAN, base_with(spoiler, base), dataset, out, lambda event: None))
    return failed.value


def test_a_bad_loss_names_its_step_micro_batch_and_lines_and_keeps_what_was_good(
    lines: list[int],
    tiny_base: Path,
    tiny_dataset: Path,
    train: Train,
    uninterrupted: Path,
    tmp_path: Path,
) -> None:
    # Two micro-batches a step; the second of step 5 is spoilt.
    error = failure(Spoiler(2 * BAD_STEP, float("nan")), tiny_base, tiny_dataset, tmp_path)
    assert f"the loss became NaN at step {BAD_STEP}, in micro-batch 2 of 2: lines " in error.message
    named = [int(line) for line in error.message.split(": lines ")[1].split(" of ")[0].split(", ")]
    assert 0 < len(named) < 4 and set(named) < set(lines)
    assert f"checkpoint-{BAD_STEP - 1}" in error.hint and "learning_rate" in error.hint
    # Going on from that checkpoint, without whatever spoilt it, ends as if nothing had been.
    figures, _ = train(tmp_path)
    assert figures["resumed_after_step"] == BAD_STEP - 1
    assert files(tmp_path) == files(uninterrupted)


def test_a_bad_gradient_under_a_good_loss_is_caught_too(
    lines: list[int], tiny_base: Path, tiny_dataset: Path, tmp_path: Path
) -> None:
    error = failure(Spoiler(2 * BAD_STEP, float("inf"), gradient=True), tiny_base, tiny_dataset, tmp_path)
    assert f"at step {BAD_STEP}, in its micro-batches together" in error.message
    assert error.message.startswith(("the gradient became infinite", "the gradient became NaN"))
    assert f"lines {', '.join(map(str, sorted(lines)))} of " in error.message
    assert (tmp_path / "checkpoints" / f"checkpoint-{BAD_STEP - 1}").is_dir()


def test_a_learning_rate_that_diverges_is_blamed(train: Train, tmp_path: Path) -> None:
    settings = msgspec.structs.replace(SETTINGS, learning_rate=1e30, warmup_fraction=0.0, max_grad_norm=1e30)
    with pytest.raises(AmigoError, match=r"became (NaN|infinite) at step") as failed:
        train(tmp_path, settings)
    assert "learning_rate" in failed.value.hint
