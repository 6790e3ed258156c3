"""TRL's own SFTTrainer and DPOTrainer over the tiny Gemma, with everything they compute written down."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import torch

from tests.support.quantized_model import lora
from tests.support.tiny_checkpoint import pairs

Start = Literal["fresh", "pretrained"]


def run_sft(model: Any, checkpoint: Path, out_dir: Path, *, resume: bool = False) -> dict[str, torch.Tensor]:
    """3 steps of 2 x 2 samples, evaluation and checkpoint after the second and the last; `resume`: from step 2 on."""
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    rows = [
        {"prompt": [{"role": "user", "content": request}], "completion": [{"role": "assistant", "content": answer}]}
        for request, answer in pairs(14)
    ]
    trainer = SFTTrainer(
        model=model,
        args=SFTConfig(**_arguments(out_dir, max_steps=3), max_length=64, save_strategy="steps", save_steps=2),
        train_dataset=Dataset.from_list(rows[:12]),
        eval_dataset=Dataset.from_list(rows[12:14]),
        processing_class=_tokenizer(checkpoint),
        peft_config=lora(),
    )
    return _train(trainer, out_dir / "checkpoint-2" if resume else None)


def run_dpo(model: Any, checkpoint: Path, out_dir: Path, *, precompute: bool) -> dict[str, torch.Tensor]:
    """2 steps of 2 x 2 pairs, an evaluation after the first. A PeftModel is its own reference as it stands."""
    from datasets import Dataset
    from trl import DPOConfig, DPOTrainer

    rows = [
        {
            "prompt": [{"role": "user", "content": request}],
            "chosen": [{"role": "assistant", "content": answer[:60]}],
            "rejected": [{"role": "assistant", "content": f"I can't say. {answer[-20:]}"}],
        }
        for request, answer in pairs(10)
    ]
    trainer = DPOTrainer(
        model=model,
        args=DPOConfig(
            **_arguments(out_dir, max_steps=2, eval_steps=1),
            max_length=64,
            precompute_ref_log_probs=precompute,
            save_strategy="no",
        ),
        train_dataset=Dataset.from_list(rows[:8]),
        eval_dataset=Dataset.from_list(rows[8:10]),
        processing_class=_tokenizer(checkpoint),
        peft_config=None if hasattr(model, "peft_config") else lora(),
    )
    return _train(trainer, None)


def _arguments(out_dir: Path, *, max_steps: int, eval_steps: int = 2) -> dict[str, Any]:
    return {
        "output_dir": str(out_dir),
        "use_cpu": True,
        "bf16": False,
        "report_to": "none",
        "learning_rate": 1e-2,
        "max_steps": max_steps,
        "per_device_train_batch_size": 2,
        "per_device_eval_batch_size": 2,
        "gradient_accumulation_steps": 2,
        "logging_steps": 1,
        "eval_strategy": "steps",
        "eval_steps": eval_steps,
        "disable_tqdm": True,
        "seed": 0,
        "dataloader_pin_memory": False,
    }


def _tokenizer(checkpoint: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(checkpoint, local_files_only=True)


def _train(trainer: Any, resume_from: Path | None) -> dict[str, torch.Tensor]:
    from transformers import TrainerCallback
    from transformers.trainer_callback import PrinterCallback

    record: dict[str, torch.Tensor] = {}

    class Gradients(TrainerCallback):
        def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **others: Any) -> None:
            for name, parameter in others["model"].named_parameters():
                if parameter.requires_grad:
                    record[f"step {state.global_step} gradient {name}"] = parameter.grad.clone()

    trainer.remove_callback(PrinterCallback)
    trainer.add_callback(Gradients())
    trainer.train(resume_from_checkpoint=str(resume_from) if resume_from else None)
    for line in trainer.state.log_history:
        for name in ("loss", "grad_norm", "eval_loss", "rewards/chosen", "eval_rewards/margins"):
            if name in line:
                record[f"step {line['step']} {name}"] = torch.tensor(line[name], dtype=torch.float64)
    for name, parameter in trainer.model.named_parameters():
        if parameter.requires_grad:
            record[f"adapter {name}"] = parameter.detach().clone()
    return record
