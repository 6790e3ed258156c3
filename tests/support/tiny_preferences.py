"""A preference set and a trained-looking adapter for the tiny base, and DPO on both."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

from amigo_local.domain.artifact import Figure
from amigo_local.domain.events import AnyEvent
from amigo_local.domain.memory_plan import MemoryPlan
from amigo_local.domain.plan import Batching
from amigo_local.domain.recipe import DpoSettings, LoraSettings, TrainSettings
from amigo_local.training.frozen_base import FrozenBase, base_from_checkpoint
from tests.support.tiny_checkpoint import pairs, write_tiny_checkpoint

END = "<|im_end|>"
PAIRS, HELD_OUT = 10, 4
# Two epochs of ten pairs: five steps, the epoch boundary inside the third.
SETTINGS = TrainSettings(
    method="dpo",
    learning_rate=2e-3,
    epochs=2,
    effective_batch=4,
    evaluate_every_steps=2,
    checkpoint_every_steps=2,
    scheduler="constant",
    warmup_fraction=0.0,
    seed=7,
    lora=LoraSettings(rank=4, alpha=8),
    dpo=DpoSettings(beta=0.3),
)
# The two sides of a pair have 39 to 85 tokens: a step of four goes through in two or three packed micro-batches.
PLAN = MemoryPlan(
    device="cpu",
    batching=Batching(micro_batch=4, accumulation=2),
    max_length_tokens=96,
    optimizer="adamw_torch",
    recompute=False,
)


def changed(settings: TrainSettings = SETTINGS, **changes: Any) -> TrainSettings:
    return msgspec.structs.replace(settings, **changes)


class TinyDpo:
    """A base, a set of PAIRS and HELD_OUT preferences, and an adapter to start from, in one folder."""

    def __init__(self, folder: Path) -> None:
        self.base = write_tiny_checkpoint(folder / "base")
        self.dataset = write_tiny_preferences(folder / "dataset", self.base, PAIRS, HELD_OUT)
        self.adapter = write_tiny_adapter(folder / "adapter", self.base, SETTINGS.lora, "tiny")

    def train(
        self,
        out_dir: Path,
        settings: TrainSettings = SETTINGS,
        *,
        plan: MemoryPlan = PLAN,
        dataset: Path | None = None,
        start: bool = True,
        base: FrozenBase | None = None,
        emit: Callable[[AnyEvent], None] = lambda event: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> dict[str, Figure]:
        from amigo_local.training.dpo import train_dpo
        from amigo_local.training.training_run import TrainingRun

        run = TrainingRun(
            settings=settings,
            plan=plan,
            base=base or base_from_checkpoint(self.base, settings, "tiny"),
            dataset_dir=dataset or self.dataset,
            out_dir=out_dir,
            emit=emit,
            start_adapter=self.adapter if start else None,
            clock=clock,
        )
        return train_dpo(run)


def log_of(out_dir: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (out_dir / "training_log.jsonl").read_text().splitlines()]


def texts(count: int) -> list[tuple[str, str, str]]:
    """(prompt, chosen, rejected): the better answer is the code, the worse one that of the next request, in words."""
    made = pairs(count + 1)
    return [(request, answer, f"Sure! {made[n + 1][0]} No.") for n, (request, answer) in enumerate(made[:count])]


def write_tiny_preferences(dir: Path, checkpoint_dir: Path, train: int, held_out: int) -> Path:
    """`dir/train.jsonl` and `dir/held_out.jsonl` as `prepare` writes them."""
    from transformers import AutoTokenizer

    dir.mkdir(parents=True, exist_ok=True)
    tokenizer = AutoTokenizer.from_pretrained(checkpoint_dir, local_files_only=True)
    rows = []
    for prompt, chosen, rejected in texts(train + held_out):
        row: dict[str, Any] = {"prompt": prompt, "chosen": chosen, "rejected": rejected}
        row["prompt_ids"] = tokenizer.apply_chat_template(
            [{"role": "user", "content": prompt}], add_generation_prompt=True, return_dict=False
        )
        for side in ("chosen", "rejected"):
            row[f"{side}_ids"] = tokenizer(row[side] + END, add_special_tokens=False)["input_ids"]
        rows.append(json.dumps(row) + "\n")
    (dir / "train.jsonl").write_text("".join(rows[:train]), encoding="utf-8")
    (dir / "held_out.jsonl").write_text("".join(rows[train:]), encoding="utf-8")
    return dir


def write_tiny_adapter(dir: Path, checkpoint_dir: Path, lora: LoraSettings, base_name: str) -> Path:
    """Random LoRA weights, B too, so that it changes what the base says as a trained one would."""
    import torch
    from peft import get_peft_model
    from transformers import AutoModelForCausalLM

    from amigo_local.training.adapter import save_adapter
    from amigo_local.training.base import lora_config

    dir.mkdir(parents=True, exist_ok=True)
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(checkpoint_dir), lora_config(lora))
    generator = torch.Generator().manual_seed(3)
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            parameter.data = torch.randn(parameter.shape, generator=generator) * (0.2 if "lora_B" in name else 0.1)
    save_adapter(model, dir, base_name)
    return dir
