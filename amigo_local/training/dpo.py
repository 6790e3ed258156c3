"""Direct preference optimization of a LoRA adapter on a frozen base, resumable at any instant."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec

from amigo_local.domain.artifact import Figure
from amigo_local.domain.errors import InputError
from amigo_local.domain.events import Emit
from amigo_local.domain.memory_plan import MemoryPlan
from amigo_local.domain.recipe import DpoSettings, TrainSettings
from amigo_local.training.frozen_base import FrozenBase
from amigo_local.training.micro_batches import StepRow
from amigo_local.training.preferences import PreferenceFile
from amigo_local.training.probe import Probing
from amigo_local.training.process import prepare_process
from amigo_local.training.reference import Logps, ReferenceFile, reference_logps
from amigo_local.training.sample_file import HELD_OUT_FILE, TRAINING_FILE
from amigo_local.training.samples import file_digest, training_order
from amigo_local.training.training_run import TrainingRun, train


def train_dpo(
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
    """Trains on the pairs of `dataset_dir/train.jsonl` and writes the adapter and its log into `out_dir`.

    start_adapter: an adapter of the same base and LoRA settings to go on from, and the reference that the policy is
    held to; None: fresh weights, so that the reference is the bare base. The plan's micro_batch counts sequences, two
    to a pair, which stay together whatever it is.

    What it raises, and how a second call goes on: as train_sft.
    """
    loss_type = loss_name(settings.dpo)
    pairs = PreferenceFile(dataset_dir / TRAINING_FILE, base.vocabulary, plan.max_length_tokens)
    pairs.tell(emit)
    held_out = held_out_pairs(settings, plan, base, dataset_dir)
    run = TrainingRun(
        settings=settings,
        plan=plan,
        base=base,
        file=pairs.path,
        rows=pairs,
        lengths=pairs.lengths,
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
    from trl import DPOConfig

    from amigo_local.training.preference_trainer import PreferenceTrainer
    from amigo_local.training.step_trainer import step_arguments

    def arguments(plan: MemoryPlan) -> Any:
        return step_arguments(
            DPOConfig,
            settings,
            plan,
            run.steps,
            run.checkpoints.path,
            beta=settings.dpo.beta,
            loss_type=[loss_type],
            label_smoothing=settings.dpo.label_smoothing,
            disable_dropout=settings.lora.dropout == 0,  # TRL's default, unless dropout is asked for
            max_length=None,  # PreferenceFile has seen to it
        )

    figures = train(run, PreferenceTrainer, arguments, before=lambda trainer: score_reference(run, trainer))
    return {**figures, "pairs_too_long": pairs.too_long, "pairs_with_equal_answers": pairs.equal}


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


def held_out_pairs(
    settings: TrainSettings, plan: MemoryPlan, base: FrozenBase, dataset_dir: Path
) -> PreferenceFile | None:
    """What evaluations measure; None when there are to be none."""
    if settings.evaluate_every_steps is None:
        return None
    path = dataset_dir / HELD_OUT_FILE
    if not path.is_file() or not path.stat().st_size:
        raise InputError(
            f"train.evaluate_every_steps is set, and {path} holds nothing to evaluate on",
            "prepare a training set with data.held_out_fraction above 0, or leave train.evaluate_every_steps out",
        )
    return PreferenceFile(path, base.vocabulary, plan.max_length_tokens)


def score_reference(run: TrainingRun, trainer: Any) -> None:
    """Gives the trainer the log-probabilities of all pairs under the policy that it holds now: the start adapter.

    They lie beside the checkpoints, so that a resumed run has them without computing anything.
    """
    of_what: dict[str, object] = {
        "base": [run.base.name, run.base.digest, run.settings.quantization],
        "adapter": run.started_from,
        "lora": msgspec.to_builtins(run.settings.lora),
        "max_length_tokens": run.plan.max_length_tokens,  # what is left out shifts the numbers of the rows behind it
    }

    def scored(name: str, rows: Sequence[StepRow], file: Path, order: Sequence[int]) -> dict[int, Logps]:
        path = run.checkpoints.path / f"reference-{name}.bin"
        reference = ReferenceFile(path, of_what | {"data": file_digest(file)})
        batch = run.settings.effective_batch  # of evaluations too, in StepTrainer.held_out_loss
        steps = [order[start : start + batch] for start in range(0, len(order), batch)]

        def compute(step: Sequence[int], told: Callable[[int], None]) -> dict[int, Logps]:
            found: dict[int, Logps] = trainer.reference_of([rows[index] for index in step], told)
            return found

        return reference_logps(reference, steps, compute, run.emit, run.clock)

    trainer.reference["train"] = scored("train", run.rows, run.file, training_order(run.lengths, run.settings))
    if run.held_out_file is not None:
        trainer.reference["eval"] = scored("held_out", run.held_out, run.held_out_file, range(len(run.held_out)))
