"""The frozen base for QLoRA: loaded as NF4 (or unquantized), with fresh LoRA weights described."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from amigo_local.domain.errors import InputError
from amigo_local.domain.recipe import LoraSettings, TrainSettings


def training_device(planned: str) -> torch.device:
    """planned: `MemoryPlan.device`. A card that the plan knows nothing of stays out of it: ROCm's torch calls its cards
    cuda, too, and the trainer goes by the plan."""
    return torch.device("cuda", 0) if planned == "cuda" and torch.cuda.is_available() else torch.device("cpu")


def compute_dtype(device: torch.device) -> torch.dtype:
    """What matrix products run in, and what the weights that stay unquantized are kept in.

    On CPU bf16 pays where the processor multiplies it: 400 against 160 GFLOPS measured on two Zen 4
    cores with AVX512-BF16. Without such instructions oneDNN converts to f32 and back.
    """
    return torch.bfloat16 if device.type == "cuda" or multiplies_bf16() else torch.float32


def multiplies_bf16() -> bool:
    from bitsandbytes.functional import has_avx512bf16

    return bool(has_avx512bf16())


def load_base(checkpoint_dir: Path, settings: TrainSettings, device: torch.device) -> Any:
    """A transformers causal LM from local safetensors, frozen.

    Double quantization costs 4.127 bits a parameter. The embedding and the head stay in the compute
    dtype; `prepare_model_for_kbit_training` is not called, since it upcasts both to f32.
    """
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    dtype = compute_dtype(device)
    quantization = None
    if settings.quantization == "nf4":
        quantization = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=dtype,
        )
    model = AutoModelForCausalLM.from_pretrained(
        checkpoint_dir,
        quantization_config=quantization,
        dtype=dtype,
        device_map={"": device},
        local_files_only=True,
    )
    model.requires_grad_(False)
    model.config.use_cache = False
    _keep_nf4_layout(model)
    return model


def _keep_nf4_layout(model: Any) -> None:
    """On CPUs with AVX512-BF16, bitsandbytes repacks a weight in place at its first eval forward, and
    gradients through it are wrong from then on with no more than a UserWarning: never repack."""
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False


def lora_config(settings: LoraSettings) -> Any:
    from peft import LoraConfig

    targets = settings.targets if settings.targets == "all-linear" else list(settings.targets)
    return LoraConfig(
        r=settings.rank,
        lora_alpha=settings.alpha,
        lora_dropout=settings.dropout,
        use_rslora=settings.use_rslora,
        use_dora=settings.use_dora,
        target_modules=targets,
        bias="none",
        task_type="CAUSAL_LM",
    )


def check_targets(model: Any, settings: LoraSettings, checkpoint_dir: Path) -> None:
    """Raises InputError when a LoRA target names no linear of the model: PEFT trains the rest in silence."""
    if settings.targets == "all-linear":
        return
    names = {name.rsplit(".", 1)[-1] for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)}
    unknown = [t for t in settings.targets if t not in names]
    if unknown:
        raise InputError(
            f"train.lora.targets: {', '.join(unknown)} names no linear layer of {checkpoint_dir}",
            f"use all-linear, or some of: {', '.join(sorted(names - {'lm_head'}))}",
        )
