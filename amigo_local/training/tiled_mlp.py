"""An MLP that tokens pass through a few at a time: for samples whose activations would not fit all at once."""

from __future__ import annotations

import types
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

Forward = Callable[[torch.Tensor], torch.Tensor]


def tile_mlps(layers: Iterable[nn.Module], tile_tokens: int) -> None:
    """Makes each decoder layer's `mlp` run on at most `tile_tokens` tokens at once, for good.

    Where a gradient is wanted each tile is checkpointed: the backward pass makes the activations of one tile at a
    time (6.6 * intermediate_size bytes a token in bf16), and reads the MLP's weights once more for it. What is
    computed stays the same but for the order of sums in a weight's gradient, and for which numbers LoRA's dropout
    draws. Names of modules and parameters stay, so adapters, hooks on linears and streamed weights don't notice; it
    may be called before or after PEFT wraps the model.
    """
    if tile_tokens < 1:
        raise ValueError(f"a tile of {tile_tokens} tokens")
    for layer in layers:
        mlp: Any = layer.mlp
        mlp.forward = types.MethodType(_tiled(mlp.forward, tile_tokens), mlp)


def _tiled(whole: Forward, tile_tokens: int) -> Callable[[nn.Module, torch.Tensor], torch.Tensor]:
    def forward(self: nn.Module, hidden: torch.Tensor) -> torch.Tensor:
        """hidden: (..., width)."""
        tokens = hidden.reshape(-1, hidden.shape[-1])
        tiles = -(-tokens.shape[0] // tile_tokens)
        if tiles < 2:
            return whole(hidden)
        # Of equal size: a last tile of one token would take bitsandbytes' kernels for vectors.
        parts = torch.tensor_split(tokens, tiles)
        if torch.is_grad_enabled():
            done = [checkpoint(whole, part, use_reentrant=False) for part in parts]
        else:
            done = [whole(part) for part in parts]
        return torch.cat(done).view(hidden.shape)

    return forward
