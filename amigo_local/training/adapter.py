"""A LoRA adapter on disk, in PEFT's format, with the same bytes every time."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from amigo_local.domain.errors import AmigoError, InputError
from amigo_local.domain.recipe import LoraSettings

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
            "it belongs to another base, or to other train.lora settings",
        )


def keep_in_f32(model: Any) -> None:
    """TRL casts LoRA to bf16 on a quantized base. AdamW's updates (about the learning rate) are then
    often below half a unit in the last place of the weight and round away, so it goes back to f32."""
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()


def check_start(folder: Path, base_name: str, lora: LoraSettings, targets: set[str] | None = None) -> None:
    """Raises InputError when training can't go on from the adapter in `folder`, saying what differs.

    targets: the linears that carry LoRA, as the model's PEFT config names them; None: not compared.
    """
    try:
        config: dict[str, Any] = json.loads((folder / CONFIG).read_bytes())
    except FileNotFoundError as error:
        raise InputError(f"{folder} holds no adapter: it has no {CONFIG}", "give an adapter's directory") from error
    except ValueError as error:
        raise InputError(f"{folder / CONFIG} is no JSON: {error}", "train the adapter again") from error
    try:
        carriers = _carriers(folder / WEIGHTS)
    except FileNotFoundError as error:
        raise InputError(f"{folder} holds no adapter: it has no {WEIGHTS}", "give an adapter's directory") from error
    found = {
        "base": config.get("base_model_name_or_path") or "",
        "rank": config.get("r"),
        "alpha": config.get("lora_alpha"),  # another one would scale what was learnt
        "use_rslora": bool(config.get("use_rslora")),
        "use_dora": bool(config.get("use_dora")),
    }
    wanted = {
        "base": base_name,
        "rank": lora.rank,
        "alpha": lora.alpha,
        "use_rslora": lora.use_rslora,
        "use_dora": lora.use_dora,
    }
    if targets is not None:
        found["targets"], wanted["targets"] = ", ".join(carriers), ", ".join(sorted(set(map(_last_name, targets))))
    for name, value in found.items():
        if value != wanted[name]:
            where = "the base" if name == "base" else f"train.lora.{name}"
            raise InputError(
                f"{folder} is an adapter of another {name}: it has {value or 'no name'}, {where} is {wanted[name]}",
                "train on the base it belongs to" if name == "base" else f"set {where} to what the adapter has",
            )


def _carriers(weights: Path) -> list[str]:
    """Names of the linears that saved LoRA weights belong to: `down_proj` of `….down_proj.lora_A.weight`."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(weights, framework="numpy") as file:  # names alone: no torch for it
            names = file.keys()
    except SafetensorError as error:
        raise InputError(f"{weights} can't be read: {error}", "train the adapter again") from error
    return sorted({_last_name(name.split(".lora_")[0]) for name in names if ".lora_" in name})


def _last_name(module: str) -> str:
    return module.rsplit(".", 1)[-1]
