"""Direct preference optimization of a LoRA adapter on a frozen base, resumable at any instant."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import msgspec

from amigo_local.domain.artifact import Figure
from amigo_local.domain.errors import InputError
from amigo_local.domain.recipe import DpoSettings
from amigo_local.training.preferences import PreferenceFile
from amigo_local.training.process import prepare_process
from amigo_local.training.reference import Logps, ReferenceFile, reference_logps
from amigo_local.training.row_file import RowFile, TrainingSet
from amigo_local.training.samples import training_order
from amigo_local.training.training_run import TrainingRun, train


def train_dpo(run: TrainingRun) -> dict[str, Figure]:
    """Trains on the pairs of `run.dataset_dir/train.jsonl` and writes the adapter and its log into `run.out_dir`.

    The start adapter is the reference that the policy is held to; without one the bare base is. The plan's micro_batch
    counts sequences, two to a pair, which stay together whatever it is.

    What it raises, and how a second call goes on: as train_sft.
    """
    settings, loss_type = run.settings, loss_name(run.settings.dpo)
    data = run.open_set(PreferenceFile)
    prepare_process()
    from trl import DPOConfig

    from amigo_local.training.preference_trainer import PreferenceTrainer

    config = partial(
        DPOConfig,
        beta=settings.dpo.beta,
        loss_type=[loss_type],
        label_smoothing=settings.dpo.label_smoothing,
        disable_dropout=settings.lora.dropout == 0,  # TRL's default, unless dropout is asked for
        max_length=None,  # none is too long
    )
    figures = train(run, data, PreferenceTrainer, config, before=lambda trainer: score_reference(run, data, trainer))
    return {**figures, "pairs_too_long": data.rows.too_long, "pairs_with_equal_answers": data.rows.without_gradient}


def loss_name(settings: DpoSettings) -> str:
    """TRL's loss_type. Its `sigmoid` knows no label smoothing; `robust` is that loss with it (arXiv 2403.00409)."""
    if settings.label_smoothing == 0:
        return settings.loss
    if settings.loss != "sigmoid":
        raise InputError(
            f"train.dpo.label_smoothing is {settings.label_smoothing}, and has no place in the loss {settings.loss}",
            "set train.dpo.loss: sigmoid, or leave train.dpo.label_smoothing out",
        )
    return "robust"


def score_reference(run: TrainingRun, data: TrainingSet, trainer: Any) -> None:
    """Gives the trainer the log-probabilities of all pairs under the policy that it holds now: the start adapter.

    They lie beside the checkpoints, so that a resumed run has them without computing anything.
    """
    of_what: dict[str, object] = {
        "base": [run.base.name, run.base.digest, run.settings.quantization],
        "adapter": run.started_from,
        "lora": msgspec.to_builtins(run.settings.lora),
        "max_length_tokens": run.plan.max_length_tokens,  # what is left out shifts the numbers of the rows behind it
    }

    def scored(name: str, rows: RowFile, order: Sequence[int]) -> dict[int, Logps]:
        path = run.checkpoints.path / f"reference-{name}.bin"
        reference = ReferenceFile(path, of_what | {"data": rows.digest})
        batch = run.settings.effective_batch  # of evaluations too, in StepTrainer.held_out_loss
        steps = [order[start : start + batch] for start in range(0, len(order), batch)]

        def compute(step: Sequence[int], told: Callable[[int], None]) -> dict[int, Logps]:
            found: dict[int, Logps] = trainer.reference_of([rows[index] for index in step], told)
            return found

        return reference_logps(reference, steps, compute, run.emit, run.clock)

    trainer.reference["train"] = scored("train", data.rows, training_order(data.rows.lengths, run.settings))
    if data.held_out is not None:
        trainer.reference["eval"] = scored("held_out", data.held_out, range(len(data.held_out)))
