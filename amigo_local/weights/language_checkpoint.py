"""The language model alone out of a multimodal checkpoint, as the text-only class of its family loads it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path

from amigo_local.domain.events import Emit, Progress
from amigo_local.weights.architecture import architecture_of
from amigo_local.weights.checkpoint_config import TORCH_DTYPES
from amigo_local.weights.compare_base import language_tensors
from amigo_local.weights.gguf_header import GgufHeader
from amigo_local.weights.safetensors_file import SHARD_BYTES, CheckpointWriter, PlannedTensor, StoredTensor

_INDEX = ".safetensors.index.json"


def is_multimodal(stored: Mapping[str, StoredTensor]) -> bool:
    """Whether the language model's tensors stand behind a prefix."""
    return "model.embed_tokens.weight" not in stored


def write_language_checkpoint(
    header: GgufHeader, source_dir: Path, stored: Mapping[str, StoredTensor], out_dir: Path, emit: Emit
) -> None:
    """Writes the language model of `source_dir` into `out_dir`: weights as they are, under plain names.

    config.json is made from the GGUF's metadata, as `unpack` makes it: a multimodal one leaves most of its text
    settings to the class's defaults. Embedding rows stay as many as the checkpoint has.
    """
    family = architecture_of(header)
    plain = {
        name: tensor
        for name, tensor in language_tensors(stored).items()
        if name.startswith(("model.embed_tokens.", "model.layers.", "model.norm.", "lm_head."))
    }
    embedding = plain["model.embed_tokens.weight"]
    dtypes = {"F32": "f32", "F16": "f16", "BF16": "bf16"}
    config = family.config(family.normalize(header)) | {
        "dtype": TORCH_DTYPES[dtypes[embedding.dtype]],  # type: ignore[index]  # the values above
        "vocab_size": embedding.shape[0],
        "tie_word_embeddings": "lm_head.weight" not in plain,
    }
    out_dir.mkdir(parents=True, exist_ok=True)
    (out_dir / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    for path in sorted(source_dir.iterdir()):
        if path.suffix != ".safetensors" and path.name != "config.json" and not path.name.endswith(_INDEX):
            shutil.copyfile(path, out_dir / path.name)

    plan = [PlannedTensor(name, tensor.shape, tensor.dtype) for name, tensor in plain.items()]
    total, done = sum(tensor.nbytes for tensor in plan), 0
    with CheckpointWriter(out_dir, plan, SHARD_BYTES) as writer:
        for planned in plan:
            for _, rows in plain[planned.name].chunks():
                writer.append(planned, rows)
            done += planned.nbytes
            emit(Progress("taking the language model out", done, total, "bytes"))
