"""Dimensions from a config.json: of a checkpoint, of a bare file, or of a well-known model that ships by name."""

from __future__ import annotations

from importlib import resources
from pathlib import Path
from typing import Any

import msgspec

from amigo_local.domain.errors import InputError
from amigo_local.domain.shape import ModelShape

_HINT = "give the config.json of a decoder-only language model, such as google/gemma-3-12b-it"
_MAX_SIZE = (1 << 31) - 1

# What transformers' config classes fill in where a published config.json says nothing.
_DEFAULTS: dict[str, dict[str, Any]] = {
    "gemma3_text": {
        "vocab_size": 262_208,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "head_dim": 256,
        "max_position_embeddings": 131_072,
        "sliding_window": 4096,
        "sliding_window_pattern": 6,
    },
    "gemma2": {"head_dim": 256, "sliding_window": 4096, "sliding_window_pattern": 2},
    "gemma": {"head_dim": 256},
    "qwen3": {"head_dim": 128},
}
_WITHOUT_QK_NORMS = ("llama", "mistral", "qwen2", "gemma", "gemma2", "phi3", "granite", "smollm3", "starcoder2")
_WITHOUT_POST_NORMS = (*(name for name in _WITHOUT_QK_NORMS if name != "gemma2"), "qwen3")


_BITS_A_WEIGHT = {"f32": 32.0, "f16": 16.0, "bf16": 16.0, "q8_0": 8.5, "q6_k": 6.56, "q5_k_m": 5.7, "q4_0": 4.55}
_Q4_K_M_BITS = 4.96  # 7,301 MB for 11.77 G weights (docs/measurements.md)


def gguf_bytes(shape: ModelShape, quant: str = "keep") -> int:
    """About, of a file that isn't here; `keep` and the mixes that aren't listed count as Ollama's usual Q4_K_M."""
    return int(shape.parameters * _BITS_A_WEIGHT.get(quant, _Q4_K_M_BITS) / 8)


def named_shapes() -> dict[str, ModelShape]:
    """Shapes that ship with the program, by the name that a person gives."""
    return {name: named_shape(name) for name in shape_names()}


def shape_names() -> list[str]:
    folder = resources.files("amigo_local") / "shapes"
    return sorted(entry.name.removesuffix(".json") for entry in folder.iterdir() if entry.name.endswith(".json"))


def named_shape(name: str) -> ModelShape:
    return shape_of_config((resources.files("amigo_local") / "shapes" / f"{name}.json").read_bytes(), name)


def shape_file(text: str) -> Path | None:
    """The config.json that a person means, where dimensions are all that is wanted: one that ships, one that is given,
    or that of a checkpoint directory."""
    if (name := text.lower()) in shape_names():
        return Path(str(resources.files("amigo_local") / "shapes" / f"{name}.json"))
    path = Path(text).expanduser().absolute()
    if path.is_dir() and (path / "config.json").is_file():
        return path / "config.json"
    return path if path.suffix == ".json" and path.is_file() else None


def checkpoint_shape(directory: Path) -> ModelShape:
    """Dimensions from the directory's config.json; a multimodal one's `text_config` counts."""
    return config_shape(directory / "config.json")


def config_shape(path: Path) -> ModelShape:
    """Raises InputError when the file isn't there or describes no dense decoder-only language model."""
    try:
        return shape_of_config(path.read_bytes(), str(path))
    except OSError as error:
        raise InputError(f"{path} can't be read: {error.strerror}", _HINT) from error


def shape_of_config(content: bytes, name: str) -> ModelShape:
    """Raises InputError, naming the key, for anything but a dense decoder-only language model."""
    try:
        config = msgspec.json.decode(content, type=dict[str, Any])
    except msgspec.MsgspecError as error:
        raise InputError(f"{name} is no JSON object: {error}", _HINT) from error
    text = config.get("text_config") or config
    if not isinstance(text, dict):
        raise InputError(f"{name}: text_config is no object", _HINT)
    family = str(text.get("model_type") or config.get("model_type") or "")
    _refuse_others(config, text, name)
    reader = _Reader(name, {**_DEFAULTS.get(family, {}), **{k: v for k, v in text.items() if v is not None}})
    heads, hidden, layers = (
        reader.count("num_attention_heads"),
        reader.count("hidden_size"),
        reader.count("num_hidden_layers"),
    )
    window, sliding = _sliding(reader, family, layers)
    tied = text.get("tie_word_embeddings", config.get("tie_word_embeddings"))
    return ModelShape(
        architecture=family,
        hidden_size=hidden,
        intermediate_size=reader.count("intermediate_size"),
        layers=layers,
        heads=heads,
        kv_heads=reader.count("num_key_value_heads", heads),
        head_dim=reader.count("head_dim", hidden // heads),
        vocabulary=reader.count("vocab_size"),
        context_length=reader.count("max_position_embeddings", 0),
        tied_embeddings=family.startswith("gemma") if tied is None else bool(tied),
        sliding_window=window,
        sliding_layers=sliding,
        # A family that isn't known counts with all norms, which is more.
        qk_norms=family not in _WITHOUT_QK_NORMS,
        post_norms=family not in _WITHOUT_POST_NORMS,
        attention_bias=bool(text.get("attention_bias", family == "qwen2")),
    )


class _Reader:
    """Whole numbers of a config."""

    def __init__(self, name: str, values: dict[str, Any]) -> None:
        self._name, self.values = name, values

    def count(self, key: str, default: int | None = None) -> int:
        value = self.values.get(key, default)
        if type(value) is not int or not (1 if default != 0 else 0) <= value <= _MAX_SIZE:
            found = "missing" if value is None else repr(value)[:40]
            raise InputError(f"{self._name}: {key} is {found}, expected a whole number above 0", _HINT)
        return value


def _refuse_others(config: dict[str, Any], text: dict[str, Any], name: str) -> None:
    classes = [str(entry) for entry in config.get("architectures") or ()]
    decoder = [c for c in classes if c.endswith(("ForCausalLM", "ForConditionalGeneration", "LMHeadModel"))]
    if config.get("is_encoder_decoder") or (classes and not decoder):
        kind = classes[0] if classes else "an encoder and a decoder"
        raise InputError(f"{name} is of no decoder-only language model, but of {kind}", _HINT)
    for key in ("num_local_experts", "num_experts", "n_routed_experts"):
        if isinstance(text.get(key), int) and text[key] > 1:
            raise InputError(
                f"{name}: a mixture of {text[key]} experts ({key}) can't be trained here", "take a dense model"
            )


def _sliding(reader: _Reader, family: str, layers: int) -> tuple[int | None, int]:
    """(window, how many layers have it), as transformers' config classes lay them out."""
    values = reader.values
    window = values.get("sliding_window")
    if window is None or (family.startswith("qwen") and not values.get("use_sliding_window")):
        return None, 0
    window = reader.count("sliding_window")
    kinds = values.get("layer_types")
    if isinstance(kinds, list):
        sliding = kinds.count("sliding_attention")
    elif family.startswith("qwen"):
        sliding = max(0, layers - int(values.get("max_window_layers") or 0))
    elif "sliding_window_pattern" in values or "_sliding_window_pattern" in values:
        period = reader.count(
            "sliding_window_pattern" if "sliding_window_pattern" in values else "_sliding_window_pattern"
        )
        sliding = layers - layers // period
    else:
        sliding = layers
    return (window, sliding) if sliding else (None, 0)
