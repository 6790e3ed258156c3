"""A causal LM whose embedding and head are moved to host tables, beside the same model with them in place."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from amigo_local.training.copy_engine import CopyEngine
from amigo_local.training.host_embedding import HostEmbedding, HostHead, untie
from amigo_local.training.host_table import HostTable
from amigo_local.weights.ggml_types import TYPES_BY_NAME
from amigo_local.weights.kernels import load_kernels

CPU = torch.device("cpu")


class StreamedTable(HostTable):
    """Tiles come as to a card: through two buffers, by an engine."""

    tiles = HostTable.streamed_tiles


def load(checkpoint: Path, dtype: torch.dtype = torch.float32) -> Any:
    """As transformers does, frozen."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=dtype, local_files_only=True)
    return model.requires_grad_(False)


def host_table(weight: torch.Tensor, type_name: str, kind: type[HostTable] = HostTable) -> HostTable:
    """`weight` as ggml quantizes it."""
    rows = np.ascontiguousarray(weight.detach().float().numpy())
    raw = rows.view(np.uint8) if type_name == "F32" else load_kernels(1).quantize(TYPES_BY_NAME[type_name].id, rows)
    return kind(torch.from_numpy(raw), type_name, weight.shape[1])


def whole(table: HostTable, dtype: torch.dtype) -> torch.Tensor:
    """All of it, decoded by ggml."""
    kind = TYPES_BY_NAME[table.type_name]
    decoded = load_kernels(1).dequantize(kind.id, table.raw.numpy(), table.shape.numel())
    return torch.from_numpy(decoded).view(table.shape).to(dtype)


def move_to_host(model: Any, type_name: str = "BF16", engine: CopyEngine | None = None) -> HostTable:
    """In place, where the head is tied to the embedding. The old module's weight becomes what the table decodes to."""
    embedding = model.get_input_embeddings()
    dtype = embedding.weight.dtype
    table = host_table(embedding.weight, type_name, StreamedTable)
    scale = getattr(embedding, "scalar_embed_scale", 1.0)
    model.set_input_embeddings(HostEmbedding(table, scale, dtype, CPU, embedding.padding_idx))
    model.set_output_embeddings(HostHead(table, dtype, CPU, 100, engine))
    untie(model)
    return table


def round_to(model: Any, table: HostTable) -> None:
    """Gives another model of the same weights the numbers of the table."""
    with torch.no_grad():
        model.get_input_embeddings().weight.copy_(whole(table, torch.float32))
        model.get_output_embeddings().weight.copy_(whole(table, torch.float32))
