"""One optimizer step's rows, and the micro-batches that they go through the model in."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import msgspec
import torch

from amigo_local.training.samples import IGNORED_LABEL, PADDED_TO, Sample

PADDING_TOKEN = 0
"""Carries no label and is looked at by nothing, so any id of the vocabulary will do."""


class StepRow(msgspec.Struct, frozen=True):
    """What stays together: one sample, or the chosen and the rejected one of a pair."""

    index: int
    """In the sequence of rows that is trained on."""
    line: int
    """In the file it was read from, counted from 1: for messages."""
    sequences: tuple[Sample, ...]

    @property
    def lengths(self) -> tuple[int, ...]:
        return tuple(len(sample.input_ids) for sample in self.sequences)


class StepBatch(msgspec.Struct, frozen=True):
    """One item of the DataLoader: everything that one optimizer step trains on, not laid out yet.

    No mapping, tuple or list: accelerate would take those apart to move their tensors.
    """

    rows: tuple[StepRow, ...]


class Span(NamedTuple):
    """Where one sequence lies in a micro-batch: input_ids[row, start:stop]."""

    row: int
    start: int
    stop: int


class MicroBatch(msgspec.Struct, frozen=True):
    """Tensors (rows, width) int64. Position t predicts label t + 1."""

    rows: tuple[StepRow, ...]
    spans: tuple[Span, ...]
    """One for each sequence, in the order of `rows` and of their sequences."""
    input_ids: torch.Tensor
    labels: torch.Tensor
    """IGNORED_LABEL where nothing is to be learnt, so at the first token of every sequence."""
    position_ids: torch.Tensor | None
    """Restart at each sequence of a packed row; None where causal attention needs no mask."""

    @property
    def completion_tokens(self) -> int:
        return completion_tokens(self.rows)

    def to(self, device: torch.device) -> MicroBatch:
        positions = None if self.position_ids is None else self.position_ids.to(device)
        return msgspec.structs.replace(
            self, input_ids=self.input_ids.to(device), labels=self.labels.to(device), position_ids=positions
        )


def completion_tokens(rows: Iterable[StepRow]) -> int:
    """Tokens that carry a label."""
    return sum(len(s.input_ids) - s.completion_start for row in rows for s in row.sequences)


def padded(tokens: int) -> int:
    return -(-tokens // PADDED_TO) * PADDED_TO


def footprint(lengths: Iterable[Sequence[int]], packing: bool) -> int:
    """Tokens, padding among them, that rows of these sequence lengths take in one micro-batch."""
    flat = [length for row in lengths for length in row]
    return padded(sum(flat)) if packing else len(flat) * padded(max(flat, default=0))


def split_step(lengths: Sequence[Sequence[int]], capacity_tokens: int, packing: bool) -> list[list[int]]:
    """Which of a step's rows go through the model together: indices into `lengths`, each once.

    `lengths[i]` are the lengths of row i's sequences. First-fit decreasing: a micro-batch's footprint is at
    most `capacity_tokens`, unless a single row is larger than that. The same arguments give the same result.
    """
    bins: list[list[int]] = []
    for index in sorted(range(len(lengths)), key=lambda i: (-footprint([lengths[i]], packing), i)):
        for members in bins:
            if footprint((lengths[i] for i in [*members, index]), packing) <= capacity_tokens:
                members.append(index)
                break
        else:
            bins.append([index])
    return bins


def lay_out(rows: Sequence[StepRow], packing: bool) -> MicroBatch:
    """Packed: one row of tensors holds every sequence end to end; else each sequence gets a row of its own.

    There is no attention mask. transformers builds a block-diagonal one (masking_utils.py:
    find_packed_sequence_indices) where position_ids restart; padding behind the last sequence counts from 0
    too, and so is a sequence by itself. A single sequence to a row needs no mask at all, since causal attention
    never looks at the padding to its right, and without one CUDA takes its flash kernel.
    """
    samples = [sample for row in rows for sample in row.sequences]
    if not packing or len(samples) == 1:
        width = padded(max(len(sample.input_ids) for sample in samples))
        spans = [Span(at, 0, len(sample.input_ids)) for at, sample in enumerate(samples)]
        positions = None
    else:
        spans, end = [], 0
        for sample in samples:
            spans.append(Span(0, end, end := end + len(sample.input_ids)))
        width = padded(end)
        counts = [span.stop - span.start for span in spans] + [width - end]
        positions = torch.cat([torch.arange(count) for count in counts])[None]
    height = spans[-1].row + 1
    input_ids = torch.full((height, width), PADDING_TOKEN)
    labels = torch.full((height, width), IGNORED_LABEL)
    for span, sample in zip(spans, samples, strict=True):
        input_ids[span.row, span.start : span.stop] = torch.tensor(sample.input_ids)
        labels[span.row, span.start : span.stop] = torch.tensor(sample.labels)
        labels[span.row, span.start] = IGNORED_LABEL  # the token before it is another sequence's
    return MicroBatch(tuple(rows), tuple(spans), input_ids, labels, positions)
