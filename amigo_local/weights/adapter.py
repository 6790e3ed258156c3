"""A LoRA adapter in PEFT's format: what it changes, by how much, and whether it belongs to a base."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from amigo_local.domain.errors import InputError
from amigo_local.weights.safetensors_file import StoredTensor, read_safetensors
from amigo_local.weights.tensor_rows import Rows

CONFIG_FILE, WEIGHTS_FILE = "adapter_config.json", "adapter_model.safetensors"
_KEY = re.compile(r"base_model\.model\.(.+)\.lora_([AB])\.(?:default\.)?weight")
# Settings of peft.LoraConfig that change what the adapter means: setting -> the values that are plain LoRA.
_PLAIN: dict[str, tuple[object, ...]] = {
    "use_dora": (None, False),
    "use_qalora": (None, False),
    "use_bdlora": (None, False),
    "lora_bias": (None, False),
    "fan_in_fan_out": (None, False),
    "bias": (None, "none"),
    "modules_to_save": (None, []),
    "trainable_token_indices": (None, [], {}),
    "target_parameters": (None, []),
    "layer_replication": (None, []),
    "alora_invocation_tokens": (None, []),
    "arrow_config": (None,),
    "kasa_config": (None,),
    "monteclora_config": (None,),
    "velora_config": (None,),
    "megatron_config": (None,),
}
# Initializations that also change the base's weights, so that the adapter alone isn't the difference.
_CHANGING_THE_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")


class LoraModule(msgspec.Struct, frozen=True):
    """The update of one linear module: `scaling * B @ A` is added to its (out, in) weight."""

    name: str
    """Module name without `.weight`: `model.layers.0.self_attn.q_proj`."""
    a: StoredTensor
    """(rank, in)."""
    b: StoredTensor
    """(out, rank)."""
    scaling: float

    @property
    def shape(self) -> tuple[int, int]:
        """(out, in) of the weight that it changes."""
        return self.b.shape[0], self.a.shape[1]

    def factors(self) -> tuple[Rows, Rows]:
        """(A, B) in float32."""
        return self.a.array(), self.b.array()


class Adapter(msgspec.Struct, frozen=True):
    """`modules` is keyed by the name of the weight that each one changes, in the base's checkpoint."""

    path: Path
    base: str
    """`base_model_name_or_path` as it was trained; empty when it isn't stated."""
    modules: dict[str, LoraModule]

    @property
    def parameters(self) -> int:
        return sum(module.a.elements + module.b.elements for module in self.modules.values())


def delta(a: Rows, b: Rows, scaling: float) -> Rows:
    """The change of the rows that `b` has, in float32 (get_delta_weight in peft/tuners/lora/layer.py)."""
    change: Rows = (b @ a) * np.float32(scaling)
    return change


def _pattern_value(patterns: Mapping[str, Any], module: str, default: float) -> float:
    """rank_pattern and alpha_pattern are regular expressions of a name's ending (get_pattern_key in peft)."""
    for pattern, value in patterns.items():
        if re.match(rf"(.*\.)?({pattern})$", module):
            return float(value)
    return default


def _read_config(path: Path) -> dict[str, Any]:
    try:
        config = json.loads(path.read_text("utf-8"))
    except FileNotFoundError as error:
        raise InputError(
            f"{path.parent}: is no adapter, it has no {CONFIG_FILE}", "give the directory that training wrote"
        ) from error
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: can't be read: {error}", "train or download the adapter again") from error
    if not isinstance(config, dict):
        raise InputError(f"{path}: is no JSON object", "train or download the adapter again")
    return config


def _refuse_unsupported(path: Path, config: dict[str, Any]) -> None:
    kind = config.get("peft_type")
    if kind != "LORA":
        raise InputError(f"{path}: peft_type is {kind!r}, only LORA is supported", "train a LoRA adapter")
    for setting, plain in _PLAIN.items():
        value = config.get(setting)
        if value not in plain:
            raise InputError(
                f"{path}: {setting} is {value!r}, which is not supported: merging without it would be wrong",
                "train a plain LoRA adapter, or merge this one with PEFT",
            )
    start = config.get("init_lora_weights")
    if isinstance(start, str) and start.startswith(_CHANGING_THE_BASE):
        raise InputError(
            f"{path}: init_lora_weights is {start!r}, which changed the base's weights too",
            "convert it with PEFT's path_initial_model_for_weight_conversion, or train with the default",
        )


def read_adapter(adapter_dir: Path) -> Adapter:
    """Reads the configuration and the tensor table; A and B stay on disk until `factors` is called.

    Raises InputError, naming it, for anything that isn't plain LoRA on linear modules.
    """
    config_path = adapter_dir / CONFIG_FILE
    config = _read_config(config_path)
    _refuse_unsupported(config_path, config)
    weights_path = adapter_dir / WEIGHTS_FILE
    if not weights_path.exists():
        raise InputError(f"{adapter_dir}: has no {WEIGHTS_FILE}", "give the directory that training wrote")
    found: dict[str, dict[str, StoredTensor]] = {}
    for key, tensor in read_safetensors(weights_path).items():
        match = _KEY.fullmatch(key)
        if match is None or len(tensor.shape) != 2:
            raise InputError(
                f"{weights_path}: {key} {list(tensor.shape)} is not LoRA on a linear module",
                "train without embeddings, convolutions, biases and modules_to_save",
            )
        found.setdefault(match[1], {})[match[2]] = tensor
    modules = {f"{name}.weight": _module(weights_path, config, name, parts) for name, parts in sorted(found.items())}
    if not modules:
        raise InputError(f"{weights_path}: holds no LoRA weights", "train the adapter again")
    return Adapter(adapter_dir, str(config.get("base_model_name_or_path") or ""), modules)


def _module(path: Path, config: dict[str, Any], name: str, parts: dict[str, StoredTensor]) -> LoraModule:
    if set(parts) != {"A", "B"} or parts["A"].shape[0] != parts["B"].shape[1]:
        raise InputError(f"{path}: {name} has no matching pair of lora_A and lora_B", "train the adapter again")
    rank = parts["A"].shape[0]
    stated = _pattern_value(config.get("rank_pattern") or {}, name, config.get("r", rank))
    if stated != rank:
        raise InputError(
            f"{path}: {name} has rank {rank}, {CONFIG_FILE} says {stated:g}", "configuration and weights must match"
        )
    alpha = _pattern_value(config.get("alpha_pattern") or {}, name, config.get("lora_alpha", rank))
    scaling = alpha / math.sqrt(rank) if config.get("use_rslora") else alpha / rank
    return LoraModule(name, parts["A"], parts["B"], scaling)


def check_adapter_fits(adapter: Adapter, shapes: Mapping[str, tuple[int, ...]]) -> None:
    """`shapes`: the base's checkpoint names -> row-major shapes. Raises InputError for the first that differs."""
    trained_on = f" (it was trained on {adapter.base})" if adapter.base else ""
    for weight, module in adapter.modules.items():
        if weight not in shapes:
            reason = "the base has no such module"
            if weight == "lm_head.weight":
                reason = "the base's output is tied to its embedding, which LoRA on lm_head would untie"
            raise InputError(
                f"{adapter.path}: is an adapter for another base{trained_on}: it changes {module.name}, {reason}",
                "give the base that the adapter was trained on",
            )
        if shapes[weight] != module.shape:
            raise InputError(
                f"{adapter.path}: is an adapter for another base{trained_on}: {module.name} is "
                f"{list(shapes[weight])} in the base, the adapter expects {list(module.shape)}",
                "give the base that the adapter was trained on",
            )
