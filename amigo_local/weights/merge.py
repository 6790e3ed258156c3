"""A checkpoint with an adapter folded into its weights, tensor by tensor."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

from amigo_local.domain.artifact import Figure
from amigo_local.domain.errors import InputError
from amigo_local.domain.events import Emit, Progress
from amigo_local.weights.adapter import check_adapter_fits, read_adapter
from amigo_local.weights.disk_space import disk_full_is_an_error
from amigo_local.weights.kernels import Rows
from amigo_local.weights.safetensors_file import (
    SHARD_BYTES,
    CheckpointWriter,
    PlannedTensor,
    StoredTensor,
    read_checkpoint,
)
from amigo_local.weights.tensor_rows import count_nonfinite, nonfinite_error
from amigo_local.weights.weight_change import WeightChange

# What makes a checkpoint usable besides its weights; weights in other formats are left behind.
_WEIGHTS = (".safetensors", ".safetensors.index.json", ".bin", ".bin.index.json", ".pt", ".pth", ".gguf")


def merge_disk_needed(base_dir: Path) -> int:
    """Bytes that `merge` writes."""
    weights = sum(tensor.nbytes for tensor in read_checkpoint(base_dir).values())
    return weights + sum(path.stat().st_size for path in _companions(base_dir))


def merge(
    base_dir: Path,
    adapter_dir: Path,
    out_dir: Path,
    emit: Emit,
    shard_bytes: int = SHARD_BYTES,
    *,
    allow_nonfinite: bool = False,
) -> dict[str, Figure]:
    """Writes the base with the adapter's changes into `out_dir`, which the caller makes final, in the base's dtype.

    Equal to PEFT's merge_and_unload: the sum is formed in float32 and rounded once. Raises InputError when the
    adapter isn't understood or belongs to another base, or a weight is NaN or infinite; AmigoError on a full disk.
    """
    base = read_checkpoint(base_dir)
    adapter = read_adapter(adapter_dir)
    changes = check_adapter_fits(adapter, {name: tensor.shape for name, tensor in base.items()})
    if out_dir.exists() and out_dir.samefile(base_dir):
        raise InputError(f"{out_dir}: is the base itself", "give another directory to write to")
    out_dir.mkdir(parents=True, exist_ok=True)
    plan = [PlannedTensor(tensor.name, tensor.shape, tensor.dtype) for tensor in base.values()]
    total = sum(tensor.nbytes for tensor in plan)
    done = nonfinite = 0
    with disk_full_is_an_error(out_dir, merge_disk_needed(base_dir)):
        for path in _companions(base_dir):
            shutil.copyfile(path, out_dir / path.name)
        with CheckpointWriter(out_dir, plan, shard_bytes) as writer:
            for planned in plan:
                found = 0
                for rows in changed_chunks(base[planned.name], changes.get(planned.name)):
                    found += count_nonfinite(rows)
                    if not found or allow_nonfinite:
                        writer.append(planned, rows)
                    done += rows.size * planned.nbytes // base[planned.name].elements
                    emit(Progress("merging", done, total, "bytes"))
                if found and not allow_nonfinite:
                    raise nonfinite_error(out_dir, planned.name, found)
                nonfinite += found
    return {
        "tensors": len(plan),
        "merged_tensors": len(changes),
        "adapter_parameters": adapter.parameters,
        "weight_bytes": total,
        "shards": writer.shard_count,
        "nonfinite_values": nonfinite,
    }


def changed_chunks(tensor: StoredTensor, change: WeightChange | None) -> Iterator[Rows]:
    """The tensor's rows in float32 with the adapter's change, a chunk at a time."""
    apply = change.load() if change else None
    for start, rows in tensor.chunks():
        if apply is None:
            yield rows
        elif len(tensor.shape) == 1:
            yield apply(rows.reshape(-1, 1), slice(0, rows.size)).reshape(1, -1)
        else:
            yield apply(rows, slice(start, start + len(rows)))


def _companions(base_dir: Path) -> list[Path]:
    """Config, tokenizer and template files, in a fixed order."""
    return sorted(path for path in base_dir.iterdir() if path.is_file() and not path.name.endswith(_WEIGHTS))
