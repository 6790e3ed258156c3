"""ModelShape: the dimensions that memory, disk and time are computed from."""

from __future__ import annotations

from typing import Literal

import msgspec

Targets = Literal["all-linear"] | tuple[str, ...]


class ModelShape(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A decoder-only transformer, from a config.json or from GGUF metadata alone."""

    architecture: str
    hidden_size: int
    intermediate_size: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    vocabulary: int
    context_length: int
    tied_embeddings: bool = True
    sliding_window: int | None = None
    """Tokens that a sliding layer sees; None: there are no such layers."""
    sliding_layers: int = 0
    """How many of the layers attend to the window only."""
    qk_norms: bool = False
    """Queries and keys are normalised (Gemma 3, Qwen 3)."""
    post_norms: bool = False
    """Norms behind attention and MLP too (Gemma 2 and 3)."""
    attention_bias: bool = False
    """q, k and v projections have biases (Qwen 2)."""

    @property
    def query_size(self) -> int:
        return self.heads * self.head_dim

    @property
    def kv_size(self) -> int:
        return self.kv_heads * self.head_dim

    @property
    def linears(self) -> dict[str, tuple[int, int]]:
        """(inputs, outputs) of one layer's projections, in the order of transformers' modules."""
        hidden, mlp = self.hidden_size, self.intermediate_size
        return {
            "q_proj": (hidden, self.query_size),
            "k_proj": (hidden, self.kv_size),
            "v_proj": (hidden, self.kv_size),
            "o_proj": (self.query_size, hidden),
            "gate_proj": (hidden, mlp),
            "up_proj": (hidden, mlp),
            "down_proj": (mlp, hidden),
        }

    @property
    def attention_parameters(self) -> int:
        """q, k, v and o projections of one layer."""
        return 2 * self.hidden_size * self.head_dim * (self.heads + self.kv_heads)

    @property
    def mlp_parameters(self) -> int:
        """gate, up and down projections of one layer."""
        return 3 * self.hidden_size * self.intermediate_size

    @property
    def layer_parameters(self) -> int:
        """The linear weights of one decoder layer (norms are negligible)."""
        return self.attention_parameters + self.mlp_parameters

    @property
    def embedding_parameters(self) -> int:
        return self.vocabulary * self.hidden_size

    @property
    def parameters(self) -> int:
        heads = 1 if self.tied_embeddings else 2
        return self.layers * self.layer_parameters + heads * self.embedding_parameters

    def adapted(self, targets: Targets = "all-linear") -> dict[str, tuple[int, int]]:
        """Of `linears`, those that LoRA is added to. A target that the table lacks (a fused projection) counts as
        all of them, which is more."""
        linears = self.linears
        if targets == "all-linear" or not set(targets) <= linears.keys():
            return linears
        return {name: linears[name] for name in linears if name in targets}

    def lora_parameters(self, rank: int, targets: Targets = "all-linear") -> int:
        """LoRA A and B of every layer."""
        return self.layers * rank * sum(inputs + outputs for inputs, outputs in self.adapted(targets).values())
