"""A LoRA adapter on disk, in PEFT's format, with the same bytes every time."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from amigo_local.domain.errors import AmigoError

WEIGHTS = "adapter_model.safetensors"
CONFIG = "adapter_config.json"


def save_adapter(model: Any, folder: Path, base_name: str) -> None:
    """Writes what `PeftModel.from_pretrained` and llama.cpp's converter read.

    PEFT's own writer stores the base's absolute path and the order of a Python set of strings, both
    of which differ between machines and runs.
    """
    from peft import get_peft_model_state_dict
    from safetensors.torch import save_file

    weights = get_peft_model_state_dict(model, save_embedding_layers=False)
    tensors = {name: weights[name].detach().cpu().contiguous() for name in sorted(weights)}
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
    config = {**model.peft_config["default"].to_dict(), "base_model_name_or_path": base_name, "inference_mode": True}
    plain = {name: sorted(value) if isinstance(value, set) else value for name, value in config.items()}
    if isinstance(plain["target_modules"], list):
        plain["target_modules"] = sorted(plain["target_modules"])
    text = json.dumps(plain, indent=2, sort_keys=True, default=str)
    (folder / CONFIG).write_text(text + "\n", encoding="utf-8")


def load_adapter(model: Any, folder: Path) -> None:
    """Puts saved LoRA weights into a model that already carries the same LoRA."""
    from peft import set_peft_model_state_dict
    from safetensors.torch import load_file

    result = set_peft_model_state_dict(model, load_file(folder / WEIGHTS))
    missing = [name for name in result.missing_keys if "lora_" in name]
    if missing or result.unexpected_keys:
        raise AmigoError(
            f"{folder} holds an adapter of another shape: {len(missing)} LoRA tensors missing, "
            f"{len(result.unexpected_keys)} unknown",
            "delete the checkpoints folder beside it and run again",
        )
