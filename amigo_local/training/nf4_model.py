"""A transformers causal LM over an open NF4 store: what `from_pretrained(load_in_4bit=True)` makes, without loading."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch

from amigo_local.domain.errors import InputError
from amigo_local.domain.memory_plan import HEAD_TILE_ROWS
from amigo_local.training.copy_engine import CopyEngine
from amigo_local.training.host_embedding import HostEmbedding, HostHead, untie
from amigo_local.training.host_table import HostTable
from amigo_local.training.layer_pack import bind, linears_4bit
from amigo_local.training.nf4_index import BLOCK, CONFIG_FILE, NESTED_BLOCK, LayerSegment, Nf4Linear
from amigo_local.training.nf4_store import Nf4Store

EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"
_LAYER = re.compile(r"model\.layers\.(\d+)\.(.+)")


class ModelOutline(NamedTuple):
    """What weights the model's class has, in the class's own words."""

    layers: tuple[tuple[tuple[str, int, int], ...], ...]
    """Of each decoder layer: (module within it, rows, columns) of its linears."""
    small: dict[str, tuple[int, ...]]
    """Shapes of norms and biases."""
    tables: dict[str, tuple[int, ...]]
    """Shapes of the embedding, and of the head when it isn't tied to it."""


def outline(config_dir: Path) -> ModelOutline:
    """Read off the class that config.json names. Raises InputError for one that has weights in other places."""
    model, _ = _skeleton(config_dir, torch.bfloat16)
    layers: list[list[tuple[str, int, int]]] = []
    linears = set()
    for name, module in linears_4bit(model):
        match = _LAYER.fullmatch(name)
        if match is None or int(match[1]) not in (len(layers) - 1, len(layers)):
            raise _unsupported(config_dir, f"{type(model).__name__} has a linear {name} outside of its decoder layers")
        if int(match[1]) == len(layers):
            layers.append([])
        layers[-1].append((match[2], module.out_features, module.in_features))
        linears.add(f"{name}.weight")
    weights = {name: tuple(weight.shape) for name, weight in model.state_dict().items()}
    small = {name: shape for name, shape in weights.items() if name not in {*linears, EMBEDDING, HEAD}}
    large = next((name for name, shape in small.items() if len(shape) > 1), None)
    if large or not layers or EMBEDDING not in weights:
        raise _unsupported(config_dir, f"{type(model).__name__} has weights at {large or 'other places'}")
    tables = [EMBEDDING] if model.config.tie_word_embeddings else [EMBEDDING, HEAD]
    return ModelOutline(tuple(tuple(layer) for layer in layers), small, {name: weights[name] for name in tables})


def build_model(
    store: Nf4Store,
    compute_dtype: torch.dtype,
    *,
    device: torch.device | None = None,
    head_tile_rows: int = HEAD_TILE_ROWS,
    engine: CopyEngine | None = None,
    keep_decoded_bytes: int = 0,
) -> Any:
    """A frozen causal LM whose linears are the store's mapped bytes, with embedding and head left on the host.

    compute_dtype: of norms, biases, embedding and what decoded weights become, as `dtype=` of from_pretrained.
    device: where norms, biases and buffers are, and what embedding and head hand their results to; linears stay
    mapped on the host, ready for a processor to train on or for a LayerStreamer to bind. None: all on the host.
    engine: moves tiles of the head; None: copies at once. keep_decoded_bytes: see HostTable.
    Raises InputError when config.json and store are of different models.
    """
    device = device or torch.device("cpu")
    model, quantizer = _skeleton(store.directory, compute_dtype)
    layers = model.model.layers
    if len(layers) != len(store.packs):
        raise _another_model(store, f"{len(store.packs)} layers in the store, {len(layers)} in its {CONFIG_FILE}")
    if _linears(layers[0]) != [(it.module, it.rows, it.columns) for it in store.index.layers[0].linears]:
        raise _another_model(store, f"its layers have other linears than those of its {CONFIG_FILE}")
    codes, nested_codes = _code_tables(device)
    for layer, segment, pack in zip(layers, store.index.layers, store.packs, strict=True):
        _give_quant_states(layer, segment, compute_dtype, codes, nested_codes)
        bind(layer, pack, pack.flat)
    tables = {name: HostTable(*table, keep_decoded_bytes) for name, table in store.tables.items()}
    given = model.model.embed_tokens
    scale = getattr(given, "scalar_embed_scale", 1.0)  # Gemma's
    model.model.embed_tokens = HostEmbedding(tables[EMBEDDING], scale, compute_dtype, device, given.padding_idx)
    model.lm_head = HostHead(tables.get(HEAD, tables[EMBEDDING]), compute_dtype, device, head_tile_rows, engine)
    untie(model)
    _place_small(model, store.small(), compute_dtype, device)
    _compute_buffers(model, quantizer, device)
    model.eval()
    model.hf_quantizer = quantizer
    model.hf_device_map = {"": device}  # or accelerate would move it
    quantizer.postprocess_model(model)
    model.requires_grad_(False)
    model.config.use_cache = False
    return model


def _skeleton(config_dir: Path, dtype: torch.dtype) -> tuple[Any, Any]:
    """(model on the meta device with empty Linear4bit, its HfQuantizer), by transformers' own rule of what to replace
    (PreTrainedModel.from_pretrained)."""
    from transformers import AutoConfig, AutoModelForCausalLM, BitsAndBytesConfig
    from transformers.quantizers import AutoHfQuantizer

    quantization = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
    )
    quantizer = AutoHfQuantizer.from_config(quantization, pre_quantized=False)
    try:
        config = AutoConfig.from_pretrained(config_dir, local_files_only=True)
        with torch.device("meta"):
            # Without a word about attention it is sdpa, or eager where the class has nothing else (Gemma 2).
            model = AutoModelForCausalLM.from_config(config, dtype=dtype)
    except (OSError, KeyError, ValueError) as error:
        raise _unsupported(config_dir, f"transformers makes no causal LM of it: {error}") from error
    quantizer.preprocess_model(model, dtype=dtype, device_map={"": "cpu"})
    return model, quantizer


def _linears(layer: torch.nn.Module) -> list[tuple[str, int, int]]:
    return [(name, module.out_features, module.in_features) for name, module in linears_4bit(layer)]


def _another_model(store: Nf4Store, what: str) -> InputError:
    return InputError(f"{store.directory}: {what}", "amigo-local quantize REF makes it again")


def _unsupported(config_dir: Path, what: str) -> InputError:
    return InputError(
        f"{config_dir / CONFIG_FILE}: {what}",
        "give a plain decoder-only model; `amigo-local base REF --repo ORG/NAME` takes one out of a multimodal one",
    )


def _code_tables(device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """NF4's 16 values and the 256 of scales (get_4bit_type, create_dynamic_map): one copy for all states."""
    from bitsandbytes.functional import create_dynamic_map, get_4bit_type

    return get_4bit_type("nf4", device=device), create_dynamic_map().to(device)


def _give_quant_states(
    layer: torch.nn.Module,
    segment: LayerSegment,
    dtype: torch.dtype,
    codes: torch.Tensor,
    nested_codes: torch.Tensor,
) -> None:
    """Params4bit that know all but their bytes."""
    import bitsandbytes
    from bitsandbytes.functional import QuantState

    stored: Mapping[str, Nf4Linear] = {linear.module: linear for linear in segment.linears}
    for name, module in linears_4bit(layer):
        linear = stored[name]
        state = QuantState(
            absmax=None,
            shape=torch.Size((linear.rows, linear.columns)),
            code=codes,
            blocksize=BLOCK,
            quant_type="nf4",
            dtype=dtype,
            offset=torch.tensor(linear.offset, device=codes.device),
            state2=QuantState(absmax=None, code=nested_codes, blocksize=NESTED_BLOCK, dtype=torch.float32),
        )
        module.weight = bitsandbytes.nn.Params4bit(
            torch.empty(0, dtype=torch.uint8),
            requires_grad=False,
            quant_state=state,
            blocksize=BLOCK,
            compress_statistics=True,
            quant_type="nf4",
            module=module,
            bnb_quantized=True,
        )


def _place_small(model: Any, small: Mapping[str, torch.Tensor], dtype: torch.dtype, device: torch.device) -> None:
    """Norms and biases, cast as from_pretrained casts them."""
    for name, value in small.items():
        module, _, parameter = name.rpartition(".")
        placed = torch.nn.Parameter(value.to(device, dtype), requires_grad=False)
        setattr(model.get_submodule(module), parameter, placed)


def _compute_buffers(model: Any, quantizer: Any, device: torch.device) -> None:
    """Buffers that no checkpoint holds (rotary frequencies), by the class's own _init_weights, which passes over what
    is marked (PreTrainedModel._finalize_model_loading of transformers 5.23)."""
    for parameter in model.parameters():
        parameter._is_hf_initialized = True
    model._move_missing_keys_from_meta_to_device(set(), {"": device}, None, quantizer)
    model._initialize_missing_keys(True)
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        assert tensor.device.type != "meta", f"{name} has no value"
