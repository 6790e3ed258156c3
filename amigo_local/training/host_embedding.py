"""A causal LM's embedding and head over host tables: modules without parameters, which nothing moves or trains."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn

from amigo_local.domain.memory_plan import HEAD_TILE_ROWS
from amigo_local.training.copy_engine import CopyEngine, SyncEngine
from amigo_local.training.host_table import HostTable, Tile


class _HostModule(nn.Module):
    """A table on the host, and where and in which dtype its numbers are wanted. `Module.to` changes the latter two."""

    def __init__(self, table: HostTable, dtype: torch.dtype, device: torch.device) -> None:
        super().__init__()
        self.table, self.dtype, self.device = table, dtype, device

    @property
    def weight(self) -> torch.Tensor:
        return TableShape(self.table.shape, self.dtype, self.device)

    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> _HostModule:
        moved = fn(torch.empty(0, dtype=self.dtype, device=self.device))
        self.dtype, self.device = moved.dtype, moved.device
        return self

    def extra_repr(self) -> str:
        rows, columns = self.table.shape
        return f"{rows}, {columns}, {self.table.type_name} on the host"


class HostEmbedding(_HostModule):
    """Looks token ids up on the host and hands their vectors to `device`, frozen.

    As transformers' Gemma3TextScaledWordEmbedding, the vectors are multiplied by `embed_scale` rounded to `dtype`;
    1.0 is what other families do. Forward hooks work as on any module: NEFTune's, and PEFT's that makes the output
    require a gradient.
    """

    def __init__(
        self,
        table: HostTable,
        embed_scale: float,
        dtype: torch.dtype,
        device: torch.device,
        padding_idx: int | None = None,
    ) -> None:
        super().__init__(table, dtype, device)
        self.embed_scale, self.padding_idx = embed_scale, padding_idx
        self.num_embeddings, self.embedding_dim = table.shape

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        """ids: any shape, int64, on any device -> (*shape, embedding_dim) on `device`."""
        vectors = self.table.rows(ids.reshape(-1), self.dtype, self.device)
        if self.embed_scale != 1:
            vectors *= torch.tensor(self.embed_scale).to(self.dtype).item()
        return vectors.view(*ids.shape, self.embedding_dim)


class HostHead(_HostModule):
    """hidden @ weight.T with the weight on the host, a tile of the vocabulary at a time.

    `forward` gives whole logits: exact, differentiable, and as large as any head's; for evaluation and generation.
    Training goes through `tiled_head`, which never holds them.
    """

    def __init__(
        self,
        table: HostTable,
        dtype: torch.dtype,
        device: torch.device,
        tile_rows: int = HEAD_TILE_ROWS,
        engine: CopyEngine | None = None,
    ) -> None:
        super().__init__(table, dtype, device)
        self.tile_rows = tile_rows
        self.engine = SyncEngine() if engine is None else engine
        self.out_features, self.in_features = table.shape
        self.bias = None

    @property
    def shape(self) -> torch.Size:
        return self.table.shape

    def rows(self, ids: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        return self.table.rows(ids, dtype, self.device)

    def tiles(self, dtype: torch.dtype) -> Iterator[Tile]:
        return self.table.tiles(self.tile_rows, self.device, dtype, self.engine)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """(..., in_features) -> (..., out_features) in the dtype of `hidden`, or autocast's."""
        apply: Any = _Logits.apply  # torch leaves it untyped
        logits: torch.Tensor = apply(hidden, self)
        return logits


def untie(model: Any) -> None:
    """Tells a causal LM whose embedding and head are host tables that there is nothing to tie: `tie_weights`, which
    libraries call on a model as they please, would look for parameters. Both tables may well lie over the same bytes.
    """
    for config in (model.config, model.config.get_text_config()):
        config.tie_word_embeddings = False
    model.all_tied_weights_keys = {}


class _Logits(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: torch.Tensor, head: HostHead) -> torch.Tensor:
        device = hidden.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else hidden.dtype
        ctx.head, ctx.dtype, ctx.hidden_dtype = head, dtype, hidden.dtype
        rows = hidden.detach().reshape(-1, head.in_features).to(dtype)
        logits = rows.new_empty(rows.shape[0], head.out_features)
        for first, weight in head.tiles(dtype):
            logits[:, first : first + weight.shape[0]] = rows @ weight.t()
        return logits.view(*hidden.shape[:-1], head.out_features)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None]:
        head: HostHead = ctx.head
        rows = gradients[0].reshape(-1, head.out_features).to(ctx.dtype)
        total = torch.zeros(rows.shape[0], head.in_features, dtype=torch.float32, device=rows.device)
        for first, weight in head.tiles(ctx.dtype):
            total += rows[:, first : first + weight.shape[0]] @ weight
        return total.to(ctx.hidden_dtype).view(*gradients[0].shape[:-1], head.in_features), None


class TableShape(torch.Tensor):
    """Shape, dtype and device of a table that isn't there: what libraries ask of `module.weight`.

    Whatever reads its numbers gets a RuntimeError.
    """

    @staticmethod
    def __new__(cls, shape: torch.Size, dtype: torch.dtype, device: torch.device) -> TableShape:
        make: Any = torch.Tensor._make_wrapper_subclass
        shaped: TableShape = make(cls, shape, dtype=dtype, device=device)
        return shaped

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]  # torch calls it with func, and declares it without
        cls, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        raise RuntimeError(f"{func}: the table lies on the host in its own format; ask HostTable.rows or .tiles")
