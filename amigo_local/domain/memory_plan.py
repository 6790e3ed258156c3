"""MemoryPlan: how one training stage is fitted to one machine, where its bytes go, and what each lever buys."""

from __future__ import annotations

from typing import Literal

import msgspec

Staging = Literal["ring", "pinned"]
"""How streamed layers leave the host: through a small pinned ring over a mapped file, or all pinned."""
Optimizer = Literal["adamw_torch", "adamw_8bit", "paged_adamw_8bit"]
HEAD_TILE_ROWS = 8192
"""Of the vocabulary; measured best on CPU too, where a tile of logits for 512 tokens stays in the cache."""


class Batching(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """How an effective batch is split: micro_batch x accumulation = effective batch."""

    micro_batch: int
    accumulation: int


class Part(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One named share of a peak."""

    name: str
    nbytes: int


class Lever(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One choice, and what the plan would be with the other one."""

    name: str
    """As a person sets it: `train.memory.offload_checkpoints`."""
    chosen: str
    other: str
    """The alternative that the differences are computed against."""
    vram_saved_bytes: int
    """Peak with the alternative minus peak as chosen; negative: the choice costs memory."""
    ram_saved_bytes: int
    seconds_saved: float
    """Per optimizer step; negative: the choice costs time."""


class MemoryPlan(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Everything that the machine, rather than the recipe, decides about a training stage."""

    device: Literal["cuda", "cpu"]
    batching: Batching
    """micro_batch: samples of the full length at once; shorter ones are packed into as many tokens."""
    max_length_tokens: int
    optimizer: Optimizer
    recompute: bool
    """Activation checkpointing: a decoder layer's forward pass runs again in the backward pass."""
    offload_checkpoints: bool = False
    """The hidden states that recomputing starts from wait on the host."""
    resident_layers: int = 0
    streamed_layers: int = 0
    slots: int = 0
    """Device buffers that the streamed layers take turns in."""
    staging: Staging = "ring"
    head_tile_rows: int = HEAD_TILE_ROWS
    """Vocabulary rows of the head on the device at once."""
    mlp_tile_tokens: int | None = None
    """Tokens that pass through an MLP at once; None: all of them."""
    vram: tuple[Part, ...] = ()
    """Parts of the peak, in the order of a stacked bar; they sum to peak_vram_bytes."""
    ram: tuple[Part, ...] = ()
    disk: tuple[Part, ...] = ()
    vram_budget_bytes: int = 0
    """What the plan may take of each: what is free, less what is left to others."""
    ram_budget_bytes: int = 0
    disk_budget_bytes: int = 0
    levers: tuple[Lever, ...] = ()
    """What was chosen, and what each choice buys."""
    step_seconds: float | None = None
    """Of one optimizer step of full-length samples."""
    tokens_per_second: float | None = None
    copies_hidden: float = 1.0
    """Predicted share of copying time that hides behind computing."""

    @property
    def tokens_at_once(self) -> int:
        return self.batching.micro_batch * self.max_length_tokens

    @property
    def peak_vram_bytes(self) -> int:
        return sum(part.nbytes for part in self.vram)

    @property
    def peak_ram_bytes(self) -> int:
        return sum(part.nbytes for part in self.ram)

    @property
    def disk_bytes(self) -> int:
        return sum(part.nbytes for part in self.disk)
