"""An adapter in PEFT's format: what it changes, by how much, and whether it belongs to a base."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from amigo_local.domain.errors import InputError
from amigo_local.weights.safetensors_file import StoredTensor, read_safetensors
from amigo_local.weights.weight_change import EmbeddingLora, LoraModule, Replacement, WeightChange

CONFIG_FILE, WEIGHTS_FILE = "adapter_config.json", "adapter_model.safetensors"
_PREFIX = "base_model.model."
# Module and part: lora_A.weight and lora_B.weight of a linear, lora_embedding_A and _B, DoRA's lora_magnitude_vector.
_KEY = re.compile(r"(.+)\.(lora_(?:embedding_)?[AB]|lora_magnitude_vector)(?:\.default)?(?:\.weight)?")
# The frozen weight under a LoRA on an embedding or head, which PEFT saves along (save_embedding_layers).
_FROZEN = ".base_layer.weight"
# Settings of peft.LoraConfig that change what the adapter means, and the values with which they don't. use_dora,
# use_rslora and modules_to_save are understood, so they aren't here.
_PLAIN: dict[str, tuple[object, ...]] = {
    "use_qalora": (None, False),
    "use_bdlora": (None, False),
    "lora_bias": (None, False),
    "fan_in_fan_out": (None, False),
    "bias": (None, "none"),
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


class Adapter(msgspec.Struct, frozen=True):
    """`modules` is keyed by the name of the weight that each one changes, in the base's checkpoint."""

    path: Path
    base: str
    """`base_model_name_or_path` as it was trained; empty when it isn't stated."""
    modules: dict[str, WeightChange]

    @property
    def parameters(self) -> int:
        return sum(module.parameters for module in self.modules.values())


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
    """Reads the configuration and the tensor table; weights stay on disk until a change is loaded.

    Understood are LoRA (rsLoRA and rank patterns included) and DoRA on linear modules, LoRA on embeddings and
    modules_to_save. Raises InputError, naming it, for anything else.
    """
    config_path = adapter_dir / CONFIG_FILE
    config = _read_config(config_path)
    _refuse_unsupported(config_path, config)
    weights_path = adapter_dir / WEIGHTS_FILE
    if not weights_path.exists():
        raise InputError(f"{adapter_dir}: has no {WEIGHTS_FILE}", "give the directory that training wrote")
    parts: dict[str, dict[str, StoredTensor]] = {}
    modules: dict[str, WeightChange] = {}
    for key, tensor in read_safetensors(weights_path).items():
        name = key.removeprefix(_PREFIX)
        match = _KEY.fullmatch(name)
        if match:
            parts.setdefault(match[1], {})[match[2]] = tensor
        elif name == key or "lora_" in name or not name.endswith((".weight", ".bias")):
            raise InputError(
                f"{weights_path}: {key} {list(tensor.shape)} is neither LoRA on a linear module or embedding nor a "
                "saved module",
                "train a plain LoRA adapter, or merge this one with PEFT",
            )
        elif not name.endswith(_FROZEN):
            modules[name] = Replacement(name.rpartition(".")[0], tensor)
    for name, found in sorted(parts.items()):
        modules[f"{name}.weight"] = _change(weights_path, config, name, found)
    if not modules:
        raise InputError(f"{weights_path}: holds no LoRA weights", "train the adapter again")
    return Adapter(adapter_dir, str(config.get("base_model_name_or_path") or ""), modules)


def _stated(config: dict[str, Any], name: str, rank: int) -> tuple[float, float]:
    """(rank, alpha) of a module. Raises TypeError, ValueError, AttributeError or re.error for what is no number."""
    return (
        float(_pattern_value(config.get("rank_pattern") or {}, name, config.get("r", rank))),
        float(_pattern_value(config.get("alpha_pattern") or {}, name, config.get("lora_alpha", rank))),
    )


def _change(path: Path, config: dict[str, Any], name: str, parts: dict[str, StoredTensor]) -> WeightChange:
    on_embedding = "lora_embedding_A" in parts
    a, b = (parts.get(f"lora_{'embedding_' if on_embedding else ''}{side}") for side in "AB")
    magnitude = parts.get("lora_magnitude_vector")
    if a is None or b is None or len(a.shape) != 2 or len(b.shape) != 2 or a.shape[0] != b.shape[1]:
        raise InputError(
            f"{path}: {name} has no matching pair of lora_A and lora_B matrices",
            "train the adapter again, without convolutions",
        )
    if bool(config.get("use_dora")) != (magnitude is not None) or (magnitude is not None and on_embedding):
        raise InputError(
            f"{path}: {name} has {'a' if magnitude else 'no'} DoRA magnitude, {CONFIG_FILE} says use_dora="
            f"{config.get('use_dora')}",
            "DoRA on embeddings isn't supported: train it on linear modules, or merge with PEFT",
        )
    if magnitude is not None and magnitude.shape != (b.shape[0],):
        raise InputError(
            f"{path}: {name} has {list(magnitude.shape)} magnitudes for {b.shape[0]} rows", "train the adapter again"
        )
    rank = a.shape[0]
    try:
        stated, alpha = _stated(config, name, rank)
    except (TypeError, ValueError, AttributeError, re.error) as error:
        raise InputError(
            f"{path.with_name(CONFIG_FILE)}: the rank or alpha of {name} can't be read: {error}",
            "train or download the adapter again",
        ) from error
    if stated != rank:
        raise InputError(
            f"{path}: {name} has rank {rank}, {CONFIG_FILE} says {stated:g}", "configuration and weights must match"
        )
    scaling = alpha / math.sqrt(rank) if config.get("use_rslora") else alpha / rank
    if on_embedding:
        return EmbeddingLora(name, a, b, scaling)
    return LoraModule(name, a, b, scaling, magnitude)


_HEAD, _EMBEDDING = "lm_head.weight", "model.embed_tokens.weight"


def check_adapter_fits(adapter: Adapter, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, WeightChange]:
    """`shapes`: the base's checkpoint names -> row-major shapes. Returns what the adapter does to each of them.

    Raises InputError for the first module that the base hasn't or has in another shape, and for a change of a tied
    embedding that training made on one side only.
    """
    trained_on = f" (it was trained on {adapter.base})" if adapter.base else ""
    changes = dict(adapter.modules)
    if _HEAD not in shapes:
        _untie(adapter, changes)
    for weight, module in changes.items():
        if weight not in shapes:
            raise InputError(
                f"{adapter.path}: is an adapter for another base{trained_on}: it changes {module.name}, the base has "
                "no such module",
                "give the base that the adapter was trained on",
            )
        if shapes[weight] != module.shape:
            raise InputError(
                f"{adapter.path}: is an adapter for another base{trained_on}: {module.name} is "
                f"{list(shapes[weight])} in the base, the adapter expects {list(module.shape)}",
                "give the base that the adapter was trained on",
            )
    return changes


def _untie(adapter: Adapter, changes: dict[str, WeightChange]) -> None:
    """A base whose output is its embedding has one tensor for both: only the same change of both can be merged."""
    head, embedding = changes.pop(_HEAD, None), changes.get(_EMBEDDING)
    if head is None and embedding is None:
        return
    # What PEFT writes with ensure_weight_tying.
    if isinstance(head, Replacement) and isinstance(embedding, Replacement):
        mine, its = head.tensor, embedding.tensor
        if mine.shape == its.shape and mine.dtype == its.dtype and mine.same_bytes(its):
            return
    side = "lm_head" if head is not None else "embed_tokens"
    raise InputError(
        f"{adapter.path}: it changes {side}, the base's output is tied to its embedding, and a change of one would "
        "change the other",
        "train without the embedding and lm_head, or with modules_to_save and ensure_weight_tying",
    )
