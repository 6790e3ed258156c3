"""NEFTune's noise is scaled by each sample's own length, packed or not."""

from __future__ import annotations

import math

import pytest
import torch

from amigo_local.training.embedding_noise import EmbeddingNoise
from amigo_local.training.micro_batches import StepRow, lay_out
from amigo_local.training.samples import Sample

WIDTH, ALPHA = 64, 5.0
ROWS = [StepRow(0, 1, (Sample([1] * 16, 1),)), StepRow(1, 2, (Sample([2] * 100, 1),))]


def noisy(packing: bool, training: bool = True) -> list[torch.Tensor]:
    torch.manual_seed(0)
    embedding = torch.nn.Embedding(3, WIDTH)
    batch = lay_out(ROWS, packing)
    clean = embedding(batch.input_ids).detach()
    noise = EmbeddingNoise(embedding, ALPHA)
    noise.expect(batch)
    added = embedding.train(training)(batch.input_ids).detach() - clean
    return [added[span.row, span.start : span.stop] for span in batch.spans]


@pytest.mark.parametrize("packing", [True, False])
def test_noise_is_uniform_up_to_alpha_over_the_root_of_length_times_width(packing: bool) -> None:
    for added, length in zip(noisy(packing), (16, 100), strict=True):
        most = ALPHA / math.sqrt(length * WIDTH)
        assert 0.98 * most < added.abs().max() <= most * 1.0001
        assert float(added.std()) == pytest.approx(most / math.sqrt(3), rel=0.05)


def test_there_is_none_in_evaluation() -> None:
    assert all(float(added.abs().max()) == 0 for added in noisy(packing=True, training=False))
