"""Supervised fine-tuning of a LoRA adapter on a frozen base, resumable at any instant."""

from __future__ import annotations

from functools import partial

from amigo_local.domain.artifact import Figure
from amigo_local.training.process import prepare_process
from amigo_local.training.sample_file import SampleFile
from amigo_local.training.training_run import TrainingRun, train


def train_sft(run: TrainingRun) -> dict[str, Figure]:
    """Trains on `run.dataset_dir/train.jsonl` and writes the adapter and its log into `run.out_dir`.

    A second call with the same run (the plan may differ) continues from the newest whole checkpoint, with the same
    losses and, on the same processor and thread count, the same final bytes.

    Raises InputError for data, base, adapter or settings that can't be trained; Cancelled when `run.emit` does,
    after saving a checkpoint.
    """
    data = run.open_set(SampleFile)
    prepare_process()
    from trl import SFTConfig

    from amigo_local.training.adapter_trainer import AdapterTrainer

    # Tokenised already, with labels, and none too long.
    config = partial(SFTConfig, dataset_kwargs={"skip_prepare_dataset": True}, max_length=None)
    figures = train(run, data, AdapterTrainer, config)
    left_out = {"samples_too_long": data.rows.too_long, "samples_without_completion": data.rows.without_gradient}
    return {**figures, **left_out}
