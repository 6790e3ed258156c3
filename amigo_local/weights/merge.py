"""A checkpoint with a LoRA adapter added to its weights, tensor by tensor."""

from __future__ import annotations

import shutil
from pathlib import Path

from amigo_local.domain.artifact import Figure
from amigo_local.domain.errors import InputError
from amigo_local.domain.events import Emit, Progress
from amigo_local.weights.adapter import check_adapter_fits, delta, read_adapter
from amigo_local.weights.safetensors_file import SHARD_BYTES, CheckpointWriter, PlannedTensor, read_checkpoint

# What makes a checkpoint usable besides its weights; weights in other formats are left behind.
_WEIGHTS = (".safetensors", ".safetensors.index.json", ".bin", ".bin.index.json", ".pt", ".pth", ".gguf")


def merge_disk_needed(base_dir: Path) -> int:
    """Bytes that `merge` writes."""
    weights = sum(tensor.nbytes for tensor in read_checkpoint(base_dir).values())
    return weights + sum(path.stat().st_size for path in _companions(base_dir))


def merge(
    base_dir: Path, adapter_dir: Path, out_dir: Path, emit: Emit, shard_bytes: int = SHARD_BYTES
) -> dict[str, Figure]:
    """Writes base + scaling * B @ A into `out_dir`, which the caller makes final, in the base's dtype.

    Equal to PEFT's merge_and_unload: the sum is formed in float32 and rounded once. Raises InputError when the
    adapter isn't plain LoRA or belongs to another base.
    """
    base = read_checkpoint(base_dir)
    adapter = read_adapter(adapter_dir)
    check_adapter_fits(adapter, {name: tensor.shape for name, tensor in base.items()})
    if out_dir.exists() and out_dir.samefile(base_dir):
        raise InputError(f"{out_dir}: is the base itself", "give another directory to write to")
    out_dir.mkdir(parents=True, exist_ok=True)
    for path in _companions(base_dir):
        shutil.copyfile(path, out_dir / path.name)

    plan = [PlannedTensor(tensor.name, tensor.shape, tensor.dtype) for tensor in base.values()]
    total = sum(tensor.nbytes for tensor in plan)
    done = 0
    with CheckpointWriter(out_dir, plan, shard_bytes) as writer:
        for planned in plan:
            module = adapter.modules.get(planned.name)
            if module is not None:
                a, b = module.factors()
            for start, rows in base[planned.name].chunks():
                if module is not None:
                    rows = rows + delta(a, b[start : start + len(rows)], module.scaling)
                writer.append(planned, rows)
            done += planned.nbytes
            emit(Progress("merging", done, total, "bytes"))
    return {
        "tensors": len(plan),
        "merged_tensors": len(adapter.modules),
        "adapter_parameters": adapter.parameters,
        "weight_bytes": total,
        "shards": writer.shard_count,
    }


def _companions(base_dir: Path) -> list[Path]:
    """Config, tokenizer and template files, in a fixed order."""
    return sorted(path for path in base_dir.iterdir() if path.is_file() and not path.name.endswith(_WEIGHTS))
