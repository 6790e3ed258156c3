"""NEFTune: noise on the input embeddings, its size set by each sample's own length."""

from __future__ import annotations

from typing import Any

import torch

from amigo_local.training.micro_batches import MicroBatch


class EmbeddingNoise:
    """Adds uniform noise of at most alpha / sqrt(length * width), while the embedding is in training mode.

    arXiv 2310.05914, algorithm 1. transformers' own (integrations/neftune.py) takes the tensor's length for L,
    which with packed rows is that of all samples together, and with padded ones that of the longest.
    """

    def __init__(self, embedding: Any, alpha: float) -> None:
        self._alpha = alpha
        self._lengths = torch.ones(1, 1)
        embedding.register_forward_hook(self._add)

    def expect(self, micro_batch: MicroBatch) -> None:
        """What the next forward pass embeds."""
        lengths = torch.ones(micro_batch.input_ids.shape)  # padding: any length will do
        for span in micro_batch.spans:
            lengths[span.row, span.start : span.stop] = span.stop - span.start
        self._lengths = lengths.to(micro_batch.input_ids.device)

    def _add(self, embedding: Any, args: Any, output: torch.Tensor) -> torch.Tensor:
        """output (rows, width, hidden)."""
        if not embedding.training:
            return output
        most = self._alpha / (self._lengths[..., None] * output.shape[-1]).sqrt()
        return output + torch.zeros_like(output).uniform_(-1, 1) * most.to(output.dtype)
