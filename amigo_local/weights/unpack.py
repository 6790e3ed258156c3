"""GGUF to a checkpoint directory that transformers loads: safetensors, configs and tokenizer."""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from amigo_local.domain.artifact import Figure
from amigo_local.domain.errors import InputError
from amigo_local.domain.events import Emit, Note, Progress
from amigo_local.domain.recipe import Dtype
from amigo_local.weights.architecture import MappedTensor, architecture_of, map_tensors
from amigo_local.weights.checkpoint_config import TORCH_DTYPES, generation_config
from amigo_local.weights.disk_space import disk_full_is_an_error
from amigo_local.weights.gguf_header import GgufHeader, read_header
from amigo_local.weights.language_model import copy_bytes
from amigo_local.weights.rotary_order import to_checkpoint_rows
from amigo_local.weights.safetensors_file import SHARD_BYTES, CheckpointWriter, PlannedTensor
from amigo_local.weights.tensor_rows import F16_MAX, Rows, TensorFile, largest_finite
from amigo_local.weights.tokenizer import write_tokenizer

ITEM_BYTES: dict[Dtype, int] = {"bf16": 2, "f16": 2, "f32": 4}
TOKENIZER_BYTES = 96 << 20  # Gemma's 262144 tokens take 33 + 4.5 MB; three times that


def unpack_disk_needed(header: GgufHeader, dtype: Dtype | None) -> int:
    """Bytes that `unpack` writes, at most; where llama.cpp can't load the file as it is, the check writes a copy."""
    mapped, _ = map_tensors(header, architecture_of(header))
    weights = sum(tensor.source.elements for tensor in mapped) * ITEM_BYTES[dtype or advised_dtype(header)]
    return weights + TOKENIZER_BYTES + copy_bytes(header)


def advised_dtype(header: GgufHeader) -> Dtype:
    """What loses least of this file in a checkpoint (docs/measurements.md has the figures).

    The file's own type where it isn't quantized. A quantized one: float16, whose 10 bits of fraction hold nearly all
    of what blocks of 2 to 8 bits say, where bfloat16's 7 round it again; bfloat16 for families whose activations
    leave float16's range, since a checkpoint's dtype is what others will compute in.
    """
    bits: dict[str, int] = {}
    for tensor in header.tensors:
        if len(tensor.dimensions) > 1:
            bits[tensor.type_name] = bits.get(tensor.type_name, 0) + tensor.nbytes
    main = max(bits, key=lambda name: bits[name], default="F32")
    plain: dict[str, Dtype] = {"F32": "f32", "F16": "f16", "BF16": "bf16"}
    return plain.get(main, "bf16" if architecture_of(header).overflows_float16 else "f16")


def unpack(
    gguf_path: Path,
    out_dir: Path,
    dtype: Dtype | None,
    emit: Emit,
    shard_bytes: int = SHARD_BYTES,
    *,
    allow_nonfinite: bool = False,
) -> dict[str, Figure]:
    """Writes a checkpoint into `out_dir`, which the caller makes final; holds one chunk of a tensor in memory.

    With `dtype` None the advised one is taken, and bfloat16 when a weight turns out to be beyond float16's range.
    Returns counts: dtype, tensors, parameters, shards, bytes of weights, skipped tensors, NaN or infinite values.
    Raises InputError for an architecture, tokenizer or tensor that isn't supported and for weights that are NaN or
    infinite, unless they are allowed; AmigoError on a full disk.
    """
    stored = read_header(gguf_path)
    header = architecture_of(stored).normalize(stored)
    chosen = dtype or advised_dtype(header)
    needed = unpack_disk_needed(header, chosen)
    try:
        with disk_full_is_an_error(out_dir.parent, needed):
            return _write(header, out_dir, chosen, emit, shard_bytes, allow_nonfinite)
    except _BeyondFloat16 as error:
        if dtype is not None:
            raise
        emit(Note(f"{error.message}: unpacking in bfloat16 instead"))
    with disk_full_is_an_error(out_dir.parent, needed):
        return _write(header, out_dir, "bf16", emit, shard_bytes, allow_nonfinite)


def write_config(header: GgufHeader, out_dir: Path, dtype: Dtype) -> None:
    """The config.json of a normalized header. None is written too: what is left out, transformers fills with defaults
    of its own."""
    _write_json(out_dir / "config.json", architecture_of(header).config(header) | {"dtype": TORCH_DTYPES[dtype]})


def unpack_tokenizer(gguf_path: Path, out_dir: Path) -> dict[str, Figure]:
    """What a checkpoint directory holds besides weights: config, tokenizer, chat template, generation config.

    Enough to render and count tokens. Raises InputError for an architecture or tokenizer that isn't supported.
    """
    stored = read_header(gguf_path)
    header = architecture_of(stored).normalize(stored)
    out_dir.mkdir(parents=True, exist_ok=True)
    with disk_full_is_an_error(out_dir.parent, TOKENIZER_BYTES):
        write_config(header, out_dir, advised_dtype(header))
        _write_json(out_dir / "generation_config.json", generation_config(header, write_tokenizer(header, out_dir)))
    return {"vocabulary": header.length("tokenizer.ggml.tokens")}


def _write(
    header: GgufHeader, out_dir: Path, dtype: Dtype, emit: Emit, shard_bytes: int, allow_nonfinite: bool
) -> dict[str, Figure]:
    mapped, skipped = map_tensors(header, architecture_of(header))
    out_dir.mkdir(parents=True, exist_ok=True)
    write_config(header, out_dir, dtype)
    if skipped:
        emit(Note(f"{len(skipped)} tensors of the vision tower stay in the GGUF: the checkpoint is the language model"))

    plan = [PlannedTensor(tensor.name, tensor.source.shape, dtype.upper()) for tensor in mapped]
    total = sum(tensor.nbytes for tensor in plan)
    done = 0
    with (
        ThreadPoolExecutor(1) as aside,
        TensorFile(header, allow_nonfinite=allow_nonfinite) as file,
        CheckpointWriter(out_dir, plan, shard_bytes) as writer,
    ):
        stops = aside.submit(write_tokenizer, header, out_dir)  # Python's work beside that of the kernels
        for tensor, planned in zip(mapped, plan, strict=True):
            for rows in checkpoint_chunks(file, tensor):
                if stops.done():
                    stops.result()  # a tokenizer that isn't supported is told now, not after all weights
                if dtype == "f16":
                    _refuse_overflow(tensor, rows)
                writer.append(planned, rows)
                done += rows.size * ITEM_BYTES[dtype]
                emit(Progress("unpacking", done, total, "bytes"))
        _write_json(out_dir / "generation_config.json", generation_config(header, stops.result()))
    for name, count in file.nonfinite.items():
        emit(Note(f"tensor {name} holds {count} values that are NaN or infinite", "warning"))
    return {
        "dtype": dtype,
        "tensors": len(mapped),
        "parameters": sum(tensor.source.elements for tensor in mapped),
        "weight_bytes": total,
        "shards": writer.shard_count,
        "skipped_tensors": len(skipped),
        "nonfinite_values": sum(file.nonfinite.values()),
    }


def checkpoint_chunks(file: TensorFile, tensor: MappedTensor) -> Iterator[Rows]:
    """The tensor's rows as the checkpoint holds them, a chunk at a time."""
    head_dim = tensor.source.shape[0] // tensor.heads if tensor.heads else None
    is_vector = len(tensor.source.shape) == 1
    multiple_of = 1 if is_vector or head_dim is None else head_dim
    for _, rows in file.chunks(tensor.source, multiple_of, unpermute=None if is_vector else head_dim):
        if head_dim is not None and is_vector:  # a bias: each element belongs to a row
            rows = to_checkpoint_rows(rows.reshape(-1, 1), head_dim).reshape(1, -1)
        yield rows - np.float32(tensor.shift) if tensor.shift else rows


class _BeyondFloat16(InputError):
    """A weight that float16 can't hold."""


def _refuse_overflow(tensor: MappedTensor, rows: Rows) -> None:
    largest = largest_finite(rows)
    if largest > F16_MAX:
        raise _BeyondFloat16(
            f"{tensor.source.name} holds {largest:.6g}, float16 ends at {F16_MAX:.0f}", "unpack with --dtype bf16"
        )


def _write_json(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
