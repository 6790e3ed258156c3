"""Supervised fine-tuning of a LoRA adapter on a frozen NF4 base, resumable at any instant."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from itertools import accumulate
from pathlib import Path
from typing import Any

import msgspec

from amigo_local.domain.artifact import Figure
from amigo_local.domain.errors import AmigoError, InputError
from amigo_local.domain.events import Emit, Note
from amigo_local.domain.plan import Batching
from amigo_local.domain.recipe import TrainSettings
from amigo_local.training.checkpoints import CheckpointFolder, step_of
from amigo_local.training.memory import uses_activation_checkpointing
from amigo_local.training.process import prepare_process, quiet_and_offline
from amigo_local.training.samples import (
    PADDED_TO,
    Sample,
    file_digest,
    read_samples,
    total_steps,
    training_file,
    training_order,
)

LOG = "training_log.jsonl"
"""One line per step: step, loss, learning_rate, grad_norm, tokens so far. No clock: reruns repeat it."""
_SCHEDULERS = {"cosine": "cosine", "linear": "linear", "constant": "constant_with_warmup"}


def train_sft(
    settings: TrainSettings,
    batching: Batching,
    checkpoint_dir: Path,
    dataset_dir: Path,
    out_dir: Path,
    emit: Emit,
    *,
    base_name: str = "",
    clock: Callable[[], float] = time.monotonic,
) -> dict[str, Figure]:
    """Trains on `dataset_dir/train.jsonl` and writes the adapter and its log into `out_dir`.

    checkpoint_dir: the base, in transformers' format. base_name: what the adapter says it belongs to
    (a name or digest; a path would tie its bytes to this machine). While it runs, checkpoints live
    in `out_dir/checkpoints`; a second call with the same arguments continues from the newest whole
    one, with the same losses and, on the same processor and thread count, the same final bytes.

    Raises InputError for data, base or settings that can't be trained; Cancelled when `emit` does,
    after saving a checkpoint.
    """
    vocabulary = _vocabulary(checkpoint_dir)
    samples = read_samples(dataset_dir, vocabulary)
    if batching.micro_batch * batching.accumulation != settings.effective_batch:
        raise InputError(
            f"micro-batch {batching.micro_batch} x accumulation {batching.accumulation} is not "
            f"the effective batch of {settings.effective_batch}",
            "set train.micro_batch to a divisor of train.effective_batch",
        )
    out_dir.mkdir(parents=True, exist_ok=True)
    checkpoints = CheckpointFolder(out_dir / "checkpoints", settings.keep_checkpoints)
    identity = {
        "settings": msgspec.to_builtins(settings),
        "batching": msgspec.to_builtins(batching),
        "data": file_digest(training_file(dataset_dir)),
        "base": file_digest(checkpoint_dir / "config.json"),
        "base_name": base_name,
    }
    if not checkpoints.open(identity):
        emit(Note("checkpoints of other settings or data were found and removed; training starts over", "warning"))
    resume = checkpoints.newest()
    if resume is not None:
        emit(Note(f"resuming after step {step_of(resume)} of {total_steps(len(samples), settings)}"))
    threads = prepare_process()
    with quiet_and_offline():
        trainer, reporter = _build(
            settings, batching, checkpoint_dir, samples, checkpoints, emit, base_name=base_name, clock=clock
        )
        _train(trainer, resume)
        history = [line for line in trainer.state.log_history if "loss" in line]
        _write_results(trainer.model, history, out_dir, base_name)
    checkpoints.remove()
    return {
        "samples": len(samples),
        "steps": len(history),
        "tokens": int(history[-1]["tokens"]),
        "first_loss": history[0]["loss"],
        "final_loss": history[-1]["loss"],
        "trainable_parameters": sum(p.numel() for p in trainer.model.parameters() if p.requires_grad),
        "device": str(trainer.args.device),
        "threads": threads,
        "micro_batch": batching.micro_batch,
        "accumulation": batching.accumulation,
        "resumed_after_step": step_of(resume) if resume else None,
        "seconds_training": round(reporter.seconds_training, 3),
        "tokens_per_second": round(reporter.tokens_trained / max(reporter.seconds_training, 1e-9), 1),
    }


def _vocabulary(checkpoint_dir: Path) -> int:
    """Rows of the embedding, from config.json alone (Gemma 3's multimodal config nests it)."""
    path = checkpoint_dir / "config.json"
    try:
        config: dict[str, Any] = json.loads(path.read_bytes())
    except FileNotFoundError as error:
        raise InputError(
            f"{checkpoint_dir} is no checkpoint: it has no config.json",
            "unpack one: amigo-local unpack REF --out DIR",
        ) from error
    except ValueError as error:
        raise InputError(f"{path} is no JSON: {error}", "unpack the model again") from error
    vocabulary = config.get("vocab_size") or config.get("text_config", {}).get("vocab_size")
    if not isinstance(vocabulary, int):
        raise InputError(f"{path} has no vocab_size", "is it a language model's checkpoint?")
    return vocabulary


def _build(
    settings: TrainSettings,
    batching: Batching,
    checkpoint_dir: Path,
    samples: list[Sample],
    checkpoints: CheckpointFolder,
    emit: Emit,
    *,
    base_name: str,
    clock: Callable[[], float],
) -> tuple[Any, Any]:
    """The trainer over the whole run's samples in their order, and what reports on it."""
    from datasets import Dataset
    from transformers import AutoTokenizer
    from transformers.trainer_callback import PrinterCallback
    from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

    from amigo_local.training.adapter_trainer import AdapterTrainer
    from amigo_local.training.base import check_targets, load_base, lora_config, training_device
    from amigo_local.training.reporting import EventReporter

    lengths = [len(sample.input_ids) for sample in samples]
    order = training_order(lengths, settings)
    device = training_device()
    model = load_base(checkpoint_dir, settings, device)
    check_targets(model, settings.lora, checkpoint_dir)
    recompute = uses_activation_checkpointing(model.num_parameters(), on_gpu=device.type == "cuda")
    tokenizer = AutoTokenizer.from_pretrained(checkpoint_dir, local_files_only=True)
    rows = Dataset.from_dict(
        {"input_ids": [sample.input_ids for sample in samples], "labels": [sample.labels for sample in samples]}
    )
    trainer = AdapterTrainer(
        model=model,
        args=_arguments(settings, batching, total_steps(len(samples), settings), checkpoints.path, device, recompute),
        train_dataset=rows.select(order),
        processing_class=tokenizer,
        # Padding comes after the sample and carries no label, so any id will do where a tokenizer names none.
        data_collator=DataCollatorForLanguageModeling(
            pad_token_id=tokenizer.pad_token_id or 0, pad_to_multiple_of=PADDED_TO
        ),
        peft_config=lora_config(settings.lora),
        checkpoints=checkpoints,
        base_name=base_name,
    )
    _keep_adapter_in_f32(trainer.model)
    reporter = EventReporter(
        emit=emit,
        tokens_by_step=_tokens_by_step([lengths[index] for index in order], settings.effective_batch),
        log_every_steps=settings.log_every_steps,
        before_step=trainer.remember_random_state,
        save_now=trainer.save_before_leaving,
        checkpoint_path=lambda step: str(checkpoints.at(step)),
        clock=clock,
    )
    trainer.remove_callback(PrinterCallback)  # it prints every log line to stdout
    trainer.add_callback(reporter)
    return trainer, reporter


def _keep_adapter_in_f32(model: Any) -> None:
    """TRL casts LoRA to bf16 on a quantized base. AdamW's updates (about the learning rate) are then
    often below half a unit in the last place of the weight and round away, so it goes back to f32."""
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()


def _tokens_by_step(ordered_lengths: list[int], batch: int) -> list[int]:
    steps = [sum(ordered_lengths[start : start + batch]) for start in range(0, len(ordered_lengths), batch)]
    return [0, *accumulate(steps)]


def _arguments(
    settings: TrainSettings, batching: Batching, steps: int, output_dir: Path, device: Any, recompute: bool
) -> Any:
    from trl import SFTConfig

    on_gpu = device.type == "cuda"
    return SFTConfig(
        output_dir=str(output_dir),
        use_cpu=not on_gpu,
        max_steps=steps,
        per_device_train_batch_size=batching.micro_batch,
        gradient_accumulation_steps=batching.accumulation,
        learning_rate=settings.learning_rate,
        lr_scheduler_type=_SCHEDULERS[settings.scheduler],
        warmup_steps=math.ceil(settings.warmup_fraction * steps),
        weight_decay=settings.weight_decay,
        max_grad_norm=settings.max_grad_norm,
        optim="adamw_torch",
        seed=settings.seed,
        train_sampling_strategy="sequential",  # training_order has shuffled already
        dataset_kwargs={"skip_prepare_dataset": True},  # already tokenised, with labels
        max_length=None,
        bf16=on_gpu,  # autocast; on CPU base.compute_dtype decides alone
        activation_checkpointing=recompute,
        dataloader_pin_memory=on_gpu,
        logging_steps=1,
        logging_nan_inf_filter=False,
        save_strategy="steps",
        save_steps=settings.checkpoint_every_steps,
        report_to="none",
        disable_tqdm=True,
    )


def _train(trainer: Any, resume: Path | None) -> None:
    import torch

    try:
        trainer.train(resume_from_checkpoint=str(resume) if resume else None)
    except torch.OutOfMemoryError as error:
        raise AmigoError(
            f"VRAM ran out: {str(error).splitlines()[0]}",
            "lower train.micro_batch or data.max_length_tokens; training resumes at its last checkpoint",
        ) from error


def _write_results(model: Any, history: list[dict[str, float]], out_dir: Path, base_name: str) -> None:
    """The log first and the adapter last, each whole or absent."""
    from amigo_local.training.adapter import CONFIG, WEIGHTS, save_adapter

    log = out_dir / f"{LOG}.partial"
    log.write_text("".join(json.dumps(line, sort_keys=True) + "\n" for line in history), encoding="utf-8")
    log.replace(out_dir / LOG)
    aside = out_dir / "adapter.partial"
    aside.mkdir(exist_ok=True)
    save_adapter(model, aside, base_name)
    for name in (CONFIG, WEIGHTS):
        (aside / name).replace(out_dir / name)
    aside.rmdir()
