"""One training from its data to its adapter on disk: what SFT and DPO have in common."""

from __future__ import annotations

import gc
import json
import shutil
import sys
import time
from collections.abc import Callable
from functools import cached_property
from itertools import accumulate
from pathlib import Path
from typing import Any

import msgspec

from amigo_local.domain.artifact import Figure
from amigo_local.domain.errors import AmigoError, InputError
from amigo_local.domain.events import Emit, Note
from amigo_local.domain.memory_plan import MemoryPlan
from amigo_local.domain.recipe import TrainSettings
from amigo_local.training.adapter import CONFIG, WEIGHTS, check_start, keep_in_f32, load_adapter, save_adapter
from amigo_local.training.checkpoints import CheckpointFolder, step_of
from amigo_local.training.device import fused_attention
from amigo_local.training.frozen_base import FrozenBase, LoadedBase
from amigo_local.training.out_of_memory import is_out_of_memory
from amigo_local.training.probe import BuildAnew, PlanCorrector, Probing, is_worth_it
from amigo_local.training.process import quiet_and_offline
from amigo_local.training.row_file import RowFile, TrainingSet
from amigo_local.training.samples import file_digest, total_steps, training_order
from amigo_local.training.settings_check import check_settings
from amigo_local.training.trackers import tracker_callbacks

TRAINING_FILE = "train.jsonl"
HELD_OUT_FILE = "held_out.jsonl"
LOG = "training_log.jsonl"
"""One line per step: step, loss, learning_rate, grad_norm, tokens so far; one per evaluation: step, eval_loss. No
clock: reruns repeat it."""


class TrainingRun(msgspec.Struct, frozen=True, dict=True):
    """What one training is asked to do. While it runs, checkpoints live in `out_dir/checkpoints`."""

    settings: TrainSettings
    plan: MemoryPlan
    base: FrozenBase
    dataset_dir: Path
    """Of train.jsonl and, where there are evaluations, held_out.jsonl."""
    out_dir: Path
    emit: Emit
    start_adapter: Path | None = None
    """An adapter of the same base and LoRA settings to go on from; None: fresh weights."""
    probing: Probing | None = None
    """How the plan is corrected where a probe finds it wrong; None: it is trained with as it is."""
    trackers_dir: Path | None = None
    """Where trackers keep their files; None: in the working directory, as they do by themselves."""
    clock: Callable[[], float] = time.monotonic
    """Seconds of work: whoever pauses the run stops it meanwhile."""
    stop_asked: Callable[[], bool] = lambda: False
    """Whether to raise Cancelled once the step at hand is finished and saved."""

    def open_set(self, kind: type[RowFile]) -> TrainingSet:
        """Raises InputError for all that can be refused before the base is loaded, settings and adapter included."""
        check_settings(self.settings)
        if self.start_adapter is not None:
            check_start(self.start_adapter, self.base.name, self.settings.lora)
        rows = kind(self.dataset_dir / TRAINING_FILE, self.base.vocabulary, self.plan.max_length_tokens)
        rows.tell(self.emit)
        if self.settings.evaluate_every_steps is None:
            return TrainingSet(rows)
        path = self.dataset_dir / HELD_OUT_FILE
        if not path.is_file() or not path.stat().st_size:
            raise InputError(
                f"train.evaluate_every_steps is set, and {path} holds nothing to evaluate on",
                "prepare a training set with data.held_out_fraction above 0, or leave train.evaluate_every_steps out",
            )
        return TrainingSet(rows, kind(path, self.base.vocabulary, self.plan.max_length_tokens))

    @property
    def checkpoints(self) -> CheckpointFolder:
        return CheckpointFolder(self.out_dir / "checkpoints", self.settings.keep_checkpoints)

    @cached_property
    def started_from(self) -> str | None:
        """Digest of the start adapter's weights."""
        return file_digest(self.start_adapter / WEIGHTS) if self.start_adapter else None

    def open_checkpoints(self, data: TrainingSet) -> Path | None:
        """The checkpoint to go on from. Of the plan only what changes numbers counts: not where layers lie, nor how
        many tokens go through at once, which the checkpoint itself knows."""
        self.out_dir.mkdir(parents=True, exist_ok=True)
        identity = {
            "settings": msgspec.to_builtins(self.settings),
            "optimizer": self.plan.optimizer,
            "max_length_tokens": self.plan.max_length_tokens,  # decides which rows there are
            "data": data.rows.digest,
            "held_out": data.held_out.digest if data.held_out else None,
            "base": self.base.digest,
            "base_name": self.base.name,
            "start_adapter": self.started_from,
        }
        if not self.checkpoints.open(identity):
            text = "checkpoints of other settings or data were found and removed; training starts over"
            self.emit(Note(text, "warning"))
        return self.checkpoints.newest()


def train(
    run: TrainingRun,
    data: TrainingSet,
    trainer_class: Callable[..., Any],
    config: Callable[..., Any],
    before: Callable[[Any], None] | None = None,
) -> dict[str, Figure]:
    """Trains and writes the adapter and its log into `run.out_dir`; a second call goes on where the first was cut.

    data: `run.open_set`'s. trainer_class: a StepTrainer; config: TRL's arguments for it, as `step_arguments` takes
    them. Both were imported after `prepare_process`. before: work that may take long, done once the plan is settled,
    with the trainer as it stands at the start, the start adapter in it, whether it then resumes or not.

    Raises InputError for what can't be trained; Cancelled when `run.emit` does, or when it is asked to stop, after
    saving a checkpoint.
    """
    import torch

    resume, steps = run.open_checkpoints(data), total_steps(len(data.rows), run.settings)
    if resume is not None:
        run.emit(Note(f"resuming after step {step_of(resume)} of {steps}"))
    corrector = None
    if run.probing is not None and is_worth_it(run.plan, steps):
        corrector = PlanCorrector(run.plan, run.probing.layer_bytes, run.probing.replan, run.emit)
    with quiet_and_offline():
        while True:
            loaded = run.base.load(run.plan)
            try:
                # Probed by a trainer of its own, where something long comes before the training.
                only_probe = before is not None and corrector is not None and not corrector.settled
                trainer, reporter = _build(run, data, loaded, trainer_class, config, corrector, only_probe)
                if before is not None and not only_probe:
                    with fused_attention(trainer.args.device.type):
                        before(trainer)
                _train(trainer, resume)
                break
            except BuildAnew:
                assert corrector is not None
                run = msgspec.structs.replace(run, plan=corrector.plan)
            finally:
                if loaded.streamer is not None:
                    loaded.streamer.close()
            # After the except clause, whose traceback holds the trainer.
            del trainer, reporter, loaded
            _free_memory()
        best = trainer.best
        _write_results(run, trainer, best[0] if best and run.settings.keep_best else None)
    run.checkpoints.remove()
    history = [line for line in trainer.state.log_history if "loss" in line]
    evaluations = [line["eval_loss"] for line in trainer.state.log_history if "eval_loss" in line]
    return {
        "samples": len(data.rows),
        "steps": len(history),
        "tokens": int(history[-1]["tokens"]),
        "first_loss": history[0]["loss"],
        "final_loss": history[-1]["loss"],
        "first_eval_loss": evaluations[0] if evaluations else None,
        "final_eval_loss": evaluations[-1] if evaluations else None,
        "best_step": best[0] if best else None,
        "best_eval_loss": best[1] if best else None,
        "started_from": run.started_from,
        "trainable_parameters": sum(p.numel() for p in trainer.model.parameters() if p.requires_grad),
        "device": str(trainer.args.device),
        "threads": torch.get_num_threads(),
        "tokens_at_once": trainer.capacity_tokens,
        "resumed_after_step": step_of(resume) if resume else None,
        "seconds_training": round(reporter.seconds_training, 3),
        "tokens_per_second": round(reporter.tokens_trained / max(reporter.seconds_training, 1e-9), 1),
    }


def _free_memory() -> None:
    import torch

    if "bitsandbytes" in sys.modules:
        # transformers registers every nn.Embedding with it (Trainer.create_optimizer), which would keep them alive.
        sys.modules["bitsandbytes"].optim.GlobalOptimManager.get_instance().initialize()
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _build(
    run: TrainingRun,
    data: TrainingSet,
    loaded: LoadedBase,
    trainer_class: Callable[..., Any],
    config: Callable[..., Any],
    corrector: PlanCorrector | None,
    only_probe: bool,
) -> tuple[Any, Any]:
    """The trainer over the whole run's rows in their order, and what reports on it."""
    from datasets import Dataset
    from transformers.trainer_callback import PrinterCallback

    from amigo_local.training.base import check_targets, lora_config
    from amigo_local.training.checkpointed_trainer import StepSetup
    from amigo_local.training.gauges import gauges_for
    from amigo_local.training.reporting import EventReporter
    from amigo_local.training.step_trainer import step_arguments

    settings, checkpoints, lengths = run.settings, run.checkpoints, data.rows.lengths
    check_targets(loaded.model, settings.lora, run.base.where)
    order = training_order(lengths, settings)
    trainer = trainer_class(
        model=loaded.model,
        args=step_arguments(config, settings, run.plan, total_steps(len(lengths), settings), checkpoints.path),
        train_dataset=Dataset.from_dict({"index": order}),
        processing_class=_no_tokenizer(),
        peft_config=lora_config(settings.lora),
        setup=StepSetup(
            rows=data.rows,
            held_out=data.held_out or (),
            settings=settings,
            plan=run.plan,
            checkpoints=checkpoints,
            base_name=run.base.name,
            emit=run.emit,
            streamer=loaded.streamer,
        ),
    )
    if settings.lora.use_dora and loaded.streamer is not None:
        loaded.streamer.initialise_magnitudes()
    keep_in_f32(trainer.model)
    if run.start_adapter is not None:
        targets = set(trainer.model.peft_config["default"].target_modules)
        check_start(run.start_adapter, run.base.name, settings.lora, targets)
        load_adapter(trainer.model, run.start_adapter)
    samples, tokens = _by_step([lengths[index] for index in order], settings.effective_batch)
    reporter = EventReporter(
        emit=run.emit,
        tokens_by_step=tokens,
        samples_by_step=samples,
        log_every_steps=settings.log_every_steps,
        after_step=trainer.remember_random_state,
        save_now=trainer.save_before_leaving,
        checkpoint_path=lambda step: str(checkpoints.at(step)),
        gauges=gauges_for(trainer.args.device, loaded.streamer),
        clock=run.clock,
        stop_asked=run.stop_asked,
    )
    trainer.after_micro_batch = reporter.micro_batch_done
    trainer.remove_callback(PrinterCallback)  # it prints every log line to stdout
    trackers = tracker_callbacks(settings.report_to, run.trackers_dir or Path.cwd())
    for callback in (*_probes(run, trainer, corrector, only_probe), reporter, *trackers):
        trainer.add_callback(callback)
    return trainer, reporter


def _probes(run: TrainingRun, trainer: Any, corrector: PlanCorrector | None, only_probe: bool) -> list[Any]:
    if corrector is None:
        return []
    from amigo_local.training.probe_callback import ProbeCallback
    from amigo_local.training.rehearsal import CudaMeter, ProcessMeter

    assert run.probing is not None
    device = trainer.args.device
    meter = CudaMeter(device, run.probing.vram_free_bytes) if device.type == "cuda" else ProcessMeter()
    return [ProbeCallback(trainer, corrector, meter, only_probe=only_probe)]


def _no_tokenizer() -> Any:
    """TRL asks for a tokenizer, and has nothing to do with it: the rows are token ids already."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(WordLevel({"": 0}, unk_token=""))
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="")


def _by_step(ordered_lengths: list[int], batch: int) -> tuple[list[int], list[int]]:
    """Rows and tokens in all after k steps, by k."""
    steps = [ordered_lengths[start : start + batch] for start in range(0, len(ordered_lengths), batch)]
    return [0, *accumulate(map(len, steps))], [0, *accumulate(map(sum, steps))]


def _train(trainer: Any, resume: Path | None) -> None:
    try:
        with fused_attention(trainer.args.device.type):
            trainer.train(resume_from_checkpoint=str(resume) if resume else None)
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        raise AmigoError(
            f"VRAM ran out outside of a micro-batch: {str(error).splitlines()[0]}",
            "lower train.memory.resident_layers or train.lora.rank; training resumes at its last checkpoint",
        ) from error


def _write_results(run: TrainingRun, trainer: Any, best_step: int | None) -> None:
    """The log first and the adapter last, each whole or absent."""
    history = [line for line in trainer.state.log_history if "loss" in line or "eval_loss" in line]
    log = run.out_dir / f"{LOG}.partial"
    log.write_text("".join(json.dumps(line, sort_keys=True) + "\n" for line in history), encoding="utf-8")
    log.replace(run.out_dir / LOG)
    aside = run.out_dir / "adapter.partial"
    aside.mkdir(exist_ok=True)
    if best_step in (None, trainer.state.global_step):
        save_adapter(trainer.model, aside, run.base.name)
    else:
        for name in (CONFIG, WEIGHTS):
            shutil.copyfile(run.checkpoints.at(best_step) / name, aside / name)
    for name in (CONFIG, WEIGHTS):
        (aside / name).replace(run.out_dir / name)
    aside.rmdir()
