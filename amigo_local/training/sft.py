"""Supervised fine-tuning of a LoRA adapter on a frozen base, resumable at any instant."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from amigo_local.domain.artifact import Figure
from amigo_local.domain.errors import InputError
from amigo_local.domain.events import Emit
from amigo_local.domain.memory_plan import MemoryPlan
from amigo_local.domain.recipe import TrainSettings
from amigo_local.training.frozen_base import FrozenBase
from amigo_local.training.probe import Probing
from amigo_local.training.process import prepare_process
from amigo_local.training.sample_file import HELD_OUT_FILE, TRAINING_FILE, SampleFile
from amigo_local.training.training_run import TrainingRun, train


def train_sft(
    settings: TrainSettings,
    plan: MemoryPlan,
    base: FrozenBase,
    dataset_dir: Path,
    out_dir: Path,
    emit: Emit,
    *,
    start_adapter: Path | None = None,
    probing: Probing | None = None,
    trackers_dir: Path | None = None,
    clock: Callable[[], float] = time.monotonic,
) -> dict[str, Figure]:
    """Trains on `dataset_dir/train.jsonl` and writes the adapter and its log into `out_dir`.

    start_adapter: an adapter of the same base and LoRA settings to go on from; None: fresh weights. A second call
    with the same arguments (the plan may differ) continues from the newest whole checkpoint, with the same losses
    and, on the same processor and thread count, the same final bytes.

    Raises InputError for data, base, adapter or settings that can't be trained; Cancelled when `emit` does,
    after saving a checkpoint.
    """
    samples = SampleFile(dataset_dir / TRAINING_FILE, base.vocabulary, plan.max_length_tokens)
    samples.tell(emit)
    held_out = held_out_samples(settings, plan, base, dataset_dir)
    run = TrainingRun(
        settings=settings,
        plan=plan,
        base=base,
        file=samples.path,
        rows=samples,
        lengths=samples.lengths,
        held_out=held_out or (),
        held_out_file=held_out.path if held_out else None,
        out_dir=out_dir,
        emit=emit,
        start_adapter=start_adapter,
        probing=probing,
        trackers_dir=trackers_dir,
        clock=clock,
    )
    prepare_process()
    from trl import SFTConfig

    from amigo_local.training.adapter_trainer import AdapterTrainer
    from amigo_local.training.step_trainer import step_arguments

    def arguments(plan: MemoryPlan) -> Any:
        # skip_prepare_dataset: tokenised already, with labels. max_length: SampleFile has seen to it.
        return step_arguments(
            SFTConfig,
            settings,
            plan,
            run.steps,
            run.checkpoints.path,
            dataset_kwargs={"skip_prepare_dataset": True},
            max_length=None,
        )

    figures = train(run, AdapterTrainer, arguments)
    left_out = {"samples_too_long": samples.too_long, "samples_without_completion": samples.without_completion}
    return {**figures, **left_out}


def held_out_samples(
    settings: TrainSettings, plan: MemoryPlan, base: FrozenBase, dataset_dir: Path
) -> SampleFile | None:
    """What evaluations measure; None when there are to be none."""
    if settings.evaluate_every_steps is None:
        return None
    path = dataset_dir / HELD_OUT_FILE
    if not path.is_file() or not path.stat().st_size:
        raise InputError(
            f"train.evaluate_every_steps is set, and {path} holds nothing to evaluate on",
            "prepare a training set with data.held_out_fraction above 0, or leave train.evaluate_every_steps out",
        )
    return SampleFile(path, base.vocabulary, plan.max_length_tokens)
