"""Random weights of a named shape, made in place: an NF4 store, and the same as a 4-bit checkpoint for the peer."""

from __future__ import annotations

import json
from pathlib import Path
from typing import IO, Any

import msgspec
import numpy as np
import numpy.typing as npt
import torch

from amigo_local.domain.errors import InputError
from amigo_local.stages._shapes import shape_file
from amigo_local.training.ggml_decoding import decode, row_bytes
from amigo_local.training.layer_pack import linears_4bit
from amigo_local.training.nf4_index import (
    CONFIG_FILE,
    INDEX_FILE,
    LAYERS_FILE,
    SEGMENT_ALIGNMENT,
    SMALL_FILE,
    LayerSegment,
    Nf4Linear,
    SourceFile,
    StoreIndex,
    TableEntry,
    check_store,
)
from amigo_local.training.nf4_layers import sync, write_synced
from amigo_local.training.nf4_model import build_model, outline
from amigo_local.training.nf4_store import layer_layout, open_store

TABLE_TYPE = "Q6_K"
"""What Ollama's Q4_K_M models keep the embedding in."""
CODES_DEVIATION = 0.6
"""Of NF4's 16 values, all as likely."""
SCALES_SPREAD = 0.3
"""Block scales are up to so much larger or smaller than their mean: QuantState.state2.absmax over QuantState.offset."""
EMBEDDING_SCALE = 6.2e-5
"""Of a Q6_K block, times a code (18 on average) and a sub-scale (18): 0.02, so that no token drowns all others."""
SMALL_CONFIG = {
    "architectures": ["Gemma3ForCausalLM"],
    "model_type": "gemma3_text",
    "vocab_size": 4096,
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_hidden_layers": 5,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 64,
    "query_pre_attn_scalar": 64,
    "sliding_window": 32,
    "sliding_window_pattern": 2,
    "max_position_embeddings": 4096,
    "torch_dtype": "bfloat16",
}


def config_of(shape_name: str | None) -> dict[str, Any]:
    """A config.json of the language model alone; None: a small Gemma 3."""
    if shape_name is None:
        return dict(SMALL_CONFIG)
    path = shape_file(shape_name)
    assert path is not None, f"no shape {shape_name} ships with the program"
    config = json.loads(path.read_bytes())
    return {**config["text_config"], "architectures": ["Gemma3ForCausalLM"], "torch_dtype": "bfloat16"}


def make_store(config: dict[str, Any], folder: Path) -> Path:
    """The store's directory below `folder`; made only where it isn't there already."""
    store = folder / "store"
    try:
        check_store(store)
        if json.loads((store / CONFIG_FILE).read_bytes()) == config:
            return store
    except InputError:
        pass
    store.mkdir(parents=True, exist_ok=True)
    (store / INDEX_FILE).unlink(missing_ok=True)
    (store / CONFIG_FILE).write_text(json.dumps(config))
    plan, random = outline(store), np.random.SFC64(0)
    (name, (rows, columns)), *others = plan.tables.items()
    assert not others, "a head of its own"
    table = folder / "embedding.q6_k"
    with table.open("wb") as file:
        _write_table(file, rows, columns, random)
    with (store / LAYERS_FILE).open("wb") as file:
        layers = tuple(_write_layer(file, layer, random) for layer in plan.layers)
    from safetensors.torch import save_file

    # Gemma multiplies by 1 + weight.
    save_file({name: torch.zeros(shape) for name, shape in plan.small.items()}, store / SMALL_FILE)
    stat = table.stat()
    index = StoreIndex(
        source_digest="random",
        bitsandbytes="none",
        files=(SourceFile(str(table.absolute()), stat.st_size, stat.st_mtime_ns),),
        tables=(TableEntry(name, 0, 0, stat.st_size, TABLE_TYPE, rows, columns),),
        layers=layers,
        sizes={file: (store / file).stat().st_size for file in (LAYERS_FILE, SMALL_FILE)},
    )
    write_synced(store / INDEX_FILE, msgspec.json.encode(index))
    return store


def _random_bytes(count: int, random: np.random.SFC64) -> npt.NDArray[np.uint8]:
    return random.random_raw(-(-count // 8)).view(np.uint8)[:count]


def _write_table(file: IO[bytes], rows: int, columns: int, random: np.random.SFC64) -> None:
    """Q6_K blocks (block_q6_K in ggml-common.h): 192 bytes of codes, 16 of scales, and an f16 scale of those."""
    row, at_once = row_bytes(TABLE_TYPE, columns), 4096
    scale = np.frombuffer(np.float16(EMBEDDING_SCALE).tobytes(), np.uint8)
    for first in range(0, rows, at_once):
        blocks = _random_bytes(row * min(at_once, rows - first), random).reshape(-1, 210)
        blocks[:, 192:208] >>= 3  # int8: 0 to 31
        blocks[:, 208:] = scale
        file.write(blocks.data)
    sync(file)  # or it would be written while something is measured


def _write_layer(file: IO[bytes], linears: tuple[tuple[str, int, int], ...], random: np.random.SFC64) -> LayerSegment:
    """A layer whose products are as large as their inputs."""
    tensors, nbytes = layer_layout(linears)
    offset = -(-file.tell() // SEGMENT_ALIGNMENT) * SEGMENT_ALIGNMENT
    file.seek(offset)
    flat = _random_bytes(nbytes, random)
    mean = {module: float(np.float32(1 / (CODES_DEVIATION * columns**0.5))) for module, _, columns in linears}
    for tensor in tensors:
        if tensor.part == "absmax2":
            scales = flat[tensor.offset : tensor.offset + tensor.nbytes].view(np.float32)
            scales[:] = SCALES_SPREAD * mean[tensor.module]
    file.write(flat.data)
    sync(file)
    stored = tuple(Nf4Linear(module, rows, columns, mean[module], 0.0) for module, rows, columns in linears)
    return LayerSegment(offset, nbytes, stored)


def make_peer_checkpoint(store_dir: Path, folder: Path) -> Path:
    """The same weights as `save_pretrained` leaves a model of `load_in_4bit`, embedding in bf16; made only once."""
    checkpoint = folder / "checkpoint"
    if (checkpoint / CONFIG_FILE).exists():
        return checkpoint
    checkpoint.mkdir(parents=True, exist_ok=True)
    store = open_store(store_dir)
    model = build_model(store, torch.bfloat16)
    ((name, table),) = store.tables.items()
    shards = [{name: decode(table.raw, table.type_name, table.columns, torch.bfloat16)}]
    shards[0] |= {name: value.bfloat16() for name, value in store.small().items()}
    weight_map: dict[str, str] = {}
    _write_shard(checkpoint, shards.pop(), weight_map)
    for index, layer in enumerate(model.model.layers):
        tensors: dict[str, torch.Tensor] = {}
        for module, linear in linears_4bit(layer):
            weight = f"model.layers.{index}.{module}.weight"
            tensors[weight] = linear.weight.data
            for part, value in linear.weight.quant_state.as_dict(packed=True).items():
                tensors[f"{weight}.{part}"] = value.clone()  # all share the code books, which safetensors refuses
        _write_shard(checkpoint, tensors, weight_map)
    listing = {"metadata": {}, "weight_map": weight_map}
    (checkpoint / "model.safetensors.index.json").write_text(json.dumps(listing))
    config = json.loads((store_dir / CONFIG_FILE).read_bytes())
    config["quantization_config"] = model.config.quantization_config.to_dict()
    (checkpoint / CONFIG_FILE).write_text(json.dumps(config))
    return checkpoint


def _write_shard(checkpoint: Path, tensors: dict[str, torch.Tensor], weight_map: dict[str, str]) -> None:
    from safetensors.torch import save_file

    name = f"model-{len(set(weight_map.values())):05d}.safetensors"
    save_file(tensors, checkpoint / name, metadata={"format": "pt"})
    weight_map |= dict.fromkeys(tensors, name)
