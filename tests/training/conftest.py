"""One tiny base and one tiny training set for every test of the training room."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import pytest

from amigo_local.domain.artifact import Figure
from amigo_local.domain.events import AnyEvent
from amigo_local.domain.memory_plan import Batching, MemoryPlan
from amigo_local.domain.recipe import LoraSettings, TrainSettings
from tests.support.tiny_checkpoint import write_tiny_checkpoint, write_tiny_dataset

# Two epochs of 20 samples: 10 steps, an epoch boundary inside step 5, dropout to draw random numbers.
SETTINGS = TrainSettings(
    learning_rate=5e-3,
    epochs=2,
    effective_batch=4,
    checkpoint_every_steps=3,
    seed=7,
    lora=LoraSettings(rank=4, alpha=8, dropout=0.1),
)
WITHOUT_DROPOUT = msgspec.structs.replace(SETTINGS, lora=LoraSettings(rank=4, alpha=8, dropout=0.0))
STEPS = 10
# Samples have 62 to 89 tokens: a step of four goes through in two packed micro-batches.
PLAN = MemoryPlan(
    device="cpu",
    batching=Batching(micro_batch=2, accumulation=2),
    max_length_tokens=96,
    optimizer="adamw_torch",
    recompute=False,
)

Train = Callable[..., tuple[dict[str, Figure], list[AnyEvent]]]


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> Iterator[None]:
    """The bytes of an adapter depend on the thread count, and spinning threads starve each other here."""
    import torch

    before = torch.get_num_threads()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def tiny_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_checkpoint(tmp_path_factory.mktemp("training") / "base")


@pytest.fixture(scope="session")
def tiny_dataset(tmp_path_factory: pytest.TempPathFactory, tiny_base: Path) -> Path:
    """20 samples to train on, and 6 others held out."""
    dataset = write_tiny_dataset(tmp_path_factory.mktemp("training") / "dataset", tiny_base, rows=26)
    lines = (dataset / "train.jsonl").read_text().splitlines(keepends=True)
    (dataset / "train.jsonl").write_text("".join(lines[:20]))
    (dataset / "held_out.jsonl").write_text("".join(lines[20:]))
    return dataset


@pytest.fixture(scope="session")
def train(tiny_base: Path, tiny_dataset: Path) -> Train:
    """Trains into a folder and returns the figures and the events."""
    from amigo_local.training.frozen_base import base_from_checkpoint
    from amigo_local.training.sft import train_sft
    from amigo_local.training.training_run import TrainingRun

    def run(
        out_dir: Path,
        settings: TrainSettings = SETTINGS,
        plan: MemoryPlan = PLAN,
        dataset: Path = tiny_dataset,
        **more: object,
    ) -> tuple[dict[str, Figure], list[AnyEvent]]:
        events: list[AnyEvent] = []
        base = base_from_checkpoint(tiny_base, settings, name="tiny")
        run = TrainingRun(settings, plan, base, dataset, out_dir, events.append, **more)
        return train_sft(run), events

    return run


@pytest.fixture(scope="session")
def uninterrupted(train: Train, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output of a run that nothing stopped."""
    out_dir = tmp_path_factory.mktemp("uninterrupted")
    train(out_dir)
    return out_dir


def files(folder: Path) -> dict[str, bytes]:
    """Everything below a folder, by relative path."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
