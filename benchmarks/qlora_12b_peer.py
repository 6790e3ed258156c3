"""What plain TRL and bitsandbytes do with the same weights: a 4-bit checkpoint, all of it on the card."""

from __future__ import annotations

import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from benchmarks.qlora_12b_card import card_memory
from benchmarks.qlora_12b_ours import (
    WARM_UP_STEPS,
    Enough,
    attention_kernels,
    cap_card,
    libraries,
    link_now,
    memory_now,
    start_profiler,
)
from benchmarks.qlora_12b_records import Measurement, Setup, Step, Task


def measure_peer(task: Task, setup: Setup, checkpoint: Path) -> Measurement:
    """SFTTrainer with its defaults: activation checkpointing, its own chunked head, one sample a micro-batch. Raises
    what training raises; running out of memory among it."""
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import AutoModelForCausalLM, modeling_utils
    from trl import SFTConfig, SFTTrainer

    on_card = torch.cuda.is_available()
    before = card_memory() if on_card else None
    cap = cap_card(setup) if task.side == "peer" else None
    if cap is not None:
        # It reserves the whole model at once, by the size of the physical card; on a small one it would hold back.
        modeling_utils.caching_allocator_warmup = lambda *_: None
    model = AutoModelForCausalLM.from_pretrained(
        checkpoint, dtype=torch.bfloat16, device_map={"": 0 if on_card else "cpu"}, local_files_only=True
    )
    generator = torch.Generator().manual_seed(0)
    count = task.micro_batches * (setup.steps + WARM_UP_STEPS + 1)
    ids = torch.randint(model.config.vocab_size, (count, task.tokens), generator=generator).tolist()
    half = task.tokens // 2
    labels = [[-100] * half + row[half:] for row in ids]
    watch = _watch(setup, before)
    with tempfile.TemporaryDirectory(dir=setup.scratch) as folder:
        trainer = SFTTrainer(
            model=model,
            args=SFTConfig(
                output_dir=folder,
                use_cpu=not on_card,
                max_length=task.tokens,
                max_steps=setup.steps + WARM_UP_STEPS + 1,
                per_device_train_batch_size=1,
                gradient_accumulation_steps=task.micro_batches,
                optim="paged_adamw_8bit" if on_card else "adamw_torch",
                dataset_kwargs={"skip_prepare_dataset": True},
                logging_steps=1,
                save_strategy="no",
                report_to="none",
                disable_tqdm=True,
            ),
            train_dataset=Dataset.from_dict({"input_ids": ids, "labels": labels}),
            processing_class=_tokenizer(),
            peft_config=LoraConfig(
                r=task.rank, lora_alpha=2 * task.rank, target_modules="all-linear", task_type="CAUSAL_LM"
            ),
            callbacks=[watch],
        )
        with suppress(Enough):
            trainer.train()
    return Measurement(
        task=task,
        card=setup.card,
        outcome="measured",
        cap_bytes=cap,
        steps=tuple(watch.steps),
        memory=watch.memory,
        kernels=watch.kernels,
        link=watch.link,
        libraries=libraries(),
    )


def _watch(setup: Setup, before: Any) -> Any:
    """A TrainerCallback that times steps as EventReporter does, from one log line to the next."""
    from transformers import TrainerCallback

    class Watch(TrainerCallback):  # type: ignore[misc]  # transformers ships no types
        def __init__(self) -> None:
            self.steps: list[Step] = []
            self.memory: Any = None
            self.kernels: tuple[str, ...] = ()
            self.link = ""
            self._profiler: Any = None
            self._started = 0.0

        def on_train_begin(self, *_: Any, **__: Any) -> None:
            self._started = time.monotonic()

        def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float], **_: Any) -> None:
            if "loss" not in logs:
                return
            if self._profiler is not None:
                self._profiler.stop()
                self.kernels = attention_kernels(self._profiler)
                raise Enough
            seconds, self._started = time.monotonic() - self._started, time.monotonic()
            if state.global_step > WARM_UP_STEPS:
                self.steps.append(Step(seconds=seconds, loss=logs["loss"]))
            if len(self.steps) == setup.steps:
                self.memory, self.link = memory_now(before), link_now()
                self._profiler = start_profiler()

    return Watch()


def _tokenizer() -> Any:
    """TRL asks for one, and has nothing to do with it: the rows are token ids already."""
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.WordLevel({"<pad>": 0}, unk_token="<pad>"))
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>")
