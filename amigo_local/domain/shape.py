"""ModelShape: the dimensions that memory, disk and time are computed from."""

from __future__ import annotations

import msgspec


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

    def lora_parameters(self, rank: int) -> int:
        """LoRA A and B on all seven linears of every layer."""
        q, kv = self.heads * self.head_dim, self.kv_heads * self.head_dim
        hidden, mlp = self.hidden_size, self.intermediate_size
        per_layer = (hidden + q) * 2 + (hidden + kv) * 2 + (hidden + mlp) * 3
        return self.layers * rank * per_layer
