"""How a step's rows are split and laid out."""

from __future__ import annotations

import random

import pytest
import torch

from amigo_local.training.micro_batches import (
    Span,
    StepRow,
    completion_tokens,
    footprint,
    lay_out,
    padded,
    split_step,
)
from amigo_local.training.samples import Sample

X = -100


def row(*lengths: int, start: int = 1, first: int = 1) -> StepRow:
    """Sequences of distinct tokens, counted up from `first`."""
    sequences, at = [], first
    for length in lengths:
        sequences.append(Sample(list(range(at, at + length)), start))
        at += length
    return StepRow(0, 1, tuple(sequences))


@pytest.mark.parametrize("packing", [True, False])
def test_every_row_goes_through_once_and_none_but_an_oversized_one_exceeds_the_capacity(packing: bool) -> None:
    generator = random.Random(1)
    for _ in range(50):
        lengths = [(generator.randint(1, 300),) for _ in range(generator.randint(1, 30))]
        groups = split_step(lengths, 256, packing)
        assert sorted(index for group in groups for index in group) == list(range(len(lengths)))
        for group in groups:
            assert len(group) == 1 or footprint([lengths[i] for i in group], packing) <= 256
        assert groups == split_step(lengths, 256, packing)


def test_packing_is_first_fit_decreasing() -> None:
    lengths = [(30,), (100,), (60,), (40,), (28,)]
    assert split_step(lengths, 128, packing=True) == [[1, 4], [2, 3], [0]]
    # A row of its own each, as wide as the longest of its micro-batch: 128; 2 x 64; 2 x 32.
    assert split_step(lengths, 128, packing=False) == [[1], [2, 3], [0, 4]]


def test_full_length_samples_fill_the_capacity_that_a_plan_gives_them() -> None:
    for packing in (True, False):
        assert split_step([(1000,)] * 4, 2 * padded(1000), packing) == [[0, 1], [2, 3]]


def test_both_sides_of_a_pair_stay_together() -> None:
    assert split_step([(50, 40), (50, 60), (20, 10)], 128, packing=True) == [[1], [0, 2]]
    assert split_step([(50, 40), (50, 60), (20, 10)], 128, packing=False) == [[0], [1], [2]]


def test_a_packed_row_restarts_positions_and_predicts_no_first_token() -> None:
    batch = lay_out([row(3, start=1), row(2, 2, start=1, first=11)], packing=True)
    assert batch.input_ids.shape == (1, 32)
    assert batch.input_ids[0, :8].tolist() == [1, 2, 3, 11, 12, 13, 14, 0]
    assert batch.labels[0, :8].tolist() == [X, 2, 3, X, 12, X, 14, X]
    assert batch.position_ids is not None
    # The padding is a sequence of its own.
    assert batch.position_ids[0].tolist() == [0, 1, 2, 0, 1, 0, 1, *range(25)]
    assert batch.spans == (Span(0, 0, 3), Span(0, 3, 5), Span(0, 5, 7))
    assert batch.completion_tokens == int((batch.labels != X).sum()) == 4


def test_padded_rows_and_single_sequences_carry_no_positions() -> None:
    batch = lay_out([row(3, start=2), row(33, start=30)], packing=False)
    assert batch.input_ids.shape == batch.labels.shape == (2, 64)
    assert batch.position_ids is None
    assert batch.labels[0, :4].tolist() == [X, X, 3, X]
    assert batch.spans == (Span(0, 0, 3), Span(1, 0, 33))
    assert completion_tokens(batch.rows) == 1 + 3
    alone = lay_out([row(33)], packing=True)
    assert (tuple(alone.input_ids.shape), alone.position_ids) == ((1, 64), None)


def test_a_completion_never_reaches_back_to_the_token_before_its_sample() -> None:
    batch = lay_out([row(4, start=0), row(4, start=0)], packing=True)
    assert batch.labels[0, [0, 4]].tolist() == [X, X]


def test_moving_a_micro_batch_moves_all_of_its_tensors() -> None:
    moved = lay_out([row(3), row(4)], packing=True).to(torch.device("meta"))
    assert moved.position_ids is not None
    assert {t.device.type for t in (moved.input_ids, moved.labels, moved.position_ids)} == {"meta"}
