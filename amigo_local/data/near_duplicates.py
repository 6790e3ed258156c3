"""Near-duplicates: rows whose word 5-grams are mostly those of an earlier row, found by MinHash (Broder 1997)."""

from __future__ import annotations

import hashlib
import math
import os
import tempfile
from collections.abc import Sequence
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import BinaryIO

import numpy as np
import numpy.typing as npt

from amigo_local.data.word_grams import Words, chunks, words_of
from amigo_local.domain.errors import AmigoError

Signatures = npt.NDArray[np.uint32]

PERMUTATIONS = 128
"""The similarity of two rows is estimated with a standard error of at most 4.4 points (√(s(1 − s) / 128))."""
SHINGLE_WORDS = 5
ROW_BYTES = PERMUTATIONS * 4
KEPT_OF_A_BUCKET = 64
"""A row is compared with so many kept rows of a bucket; only boilerplate has buckets with more."""

_SEED = b"permutations"  # any; signatures made with another can't be compared with these
_ROWS_AT_ONCE = 8192
_RECALL = 0.99
_HALF = np.uint64(32)


def signatures(texts: Sequence[str]) -> Signatures:
    """(n, 128) for n texts; equal columns of two rows estimate the Jaccard similarity of their sets of 5-grams.

    A text of fewer than five words is one gram. One without words is like no other row but such.
    """
    made = np.full((len(texts), PERMUTATIONS), np.iinfo(np.uint32).max, np.uint32)
    factors, offsets = _permutations()
    for part in chunks(list(map(len, texts))):
        grams, counts = _grams(words_of(texts[part]))
        rows = np.flatnonzero(counts)
        starts = (np.cumsum(counts) - counts)[rows]
        # A permutation at a time: minima over neighbouring numbers are five times as fast as over columns.
        permuted = np.empty_like(grams)
        for index in range(PERMUTATIONS if len(rows) else 0):
            np.multiply(grams, factors[index], out=permuted)
            np.add(permuted, offsets[index], out=permuted)
            made[part.start + rows, index] = np.minimum.reduceat(permuted, starts)
    return made


def _grams(words: Words) -> tuple[npt.NDArray[np.uint32], npt.NDArray[np.int64]]:
    """(grams,) mixed to 32 bits, and how many each text has."""
    lengths = np.diff(words.starts)
    short = (lengths > 0) & (lengths < SHINGLE_WORDS)
    starts = np.sort(np.concatenate([words.run_starts(SHINGLE_WORDS), words.starts[:-1][short]]))
    text = words.text_of(starts)
    numbers = words.runs(starts, np.minimum(lengths[text], SHINGLE_WORDS))
    numbers ^= numbers >> _HALF
    numbers *= np.uint64(0x94D049BB133111EB)  # SplitMix64's last step
    return (numbers >> _HALF).astype(np.uint32), np.bincount(text, minlength=len(lengths))


@cache
def _permutations() -> tuple[npt.NDArray[np.uint32], npt.NDArray[np.uint32]]:
    """x → a·x + b modulo 2^32 with odd a is a permutation of 32-bit numbers."""
    drawn = np.frombuffer(hashlib.shake_128(_SEED).digest(2 * ROW_BYTES), "<u4").reshape(2, PERMUTATIONS)
    return drawn[0] | np.uint32(1), drawn[1]


class SignatureFile:
    """Signatures on disk, a row after another; nothing is kept in memory."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __len__(self) -> int:
        """Rows."""
        return self.path.stat().st_size // ROW_BYTES if self.path.exists() else 0

    def append(self, rows: Signatures) -> None:
        with self.path.open("ab") as file:
            file.write(np.ascontiguousarray(rows, "<u4").tobytes())

    def truncate(self, rows: int) -> None:
        """Back to its first `rows`, for work that was cut short. Raises AmigoError when there aren't so many."""
        if len(self) < rows:
            raise AmigoError(f"{self.path}: {len(self)} signatures where {rows} were written", "start over")
        with self.path.open("ab") as file:
            file.truncate(rows * ROW_BYTES)


def banding(threshold: float) -> tuple[int, int]:
    """(bands, rows of a band): the most selective ones that still propose 99 % of the pairs at the threshold.

    Two rows of similarity s share a bucket with the chance 1 - (1 - s^r)^b (Leskovec et al., Mining of Massive
    Datasets, section 3.4.2).
    """
    for rows in range(PERMUTATIONS, 1, -1):
        bands = PERMUTATIONS // rows
        if 1 - (1 - threshold**rows) ** bands >= _RECALL:
            return bands, rows
    return PERMUTATIONS, 1


def near_duplicates(path: Path, threshold: float) -> npt.NDArray[np.bool_]:
    """(rows,) True where a row of a SignatureFile is as similar as `threshold` to an earlier row that is kept.

    Rows are taken in order, so the first of similar ones stays. In memory are one band's column, and at most 16 bytes
    for each bucket that a row shares with another; the signatures stay on disk.
    """
    total = len(SignatureFile(path))
    near = np.zeros(total, np.bool_)
    agreeing = math.ceil(threshold * PERMUTATIONS - 1e-9)
    with path.open("rb") as file:
        rows, buckets, room = _shared_buckets(file, path.parent, total, *banding(threshold))
        kept = _Kept(room)
        edges = [0, *(np.flatnonzero(rows[1:] != rows[:-1]) + 1).tolist(), len(rows)]
        for begin, end in pairwise(edges if len(rows) else []):
            row, shared = int(rows[begin]), buckets[begin:end]
            if len(candidates := kept.of(shared)):
                signature = _signature(file, row)
                near[row] = any(np.count_nonzero(_signature(file, at) == signature) >= agreeing for at in candidates)
            if not near[row]:
                kept.add(row, shared)
    return near


class _Kept:
    """The first kept rows of each bucket, in one array with as much room for each as it can need."""

    def __init__(self, room: npt.NDArray[np.uint8]) -> None:
        self._room = room
        self._count = np.zeros_like(room)
        self._start = np.cumsum(room, dtype=np.int64) - room
        self._rows = np.empty(int(room.sum()), np.uint32)

    def of(self, buckets: npt.NDArray[np.uint32]) -> list[int]:
        """Rows in any of these buckets, in order."""
        counts = self._count[buckets].astype(np.int64)
        if not counts.any():
            return []
        ends = np.cumsum(counts)
        at = np.arange(ends[-1]) + np.repeat(self._start[buckets] - ends + counts, counts)
        return sorted(set(self._rows[at].tolist()))

    def add(self, row: int, buckets: npt.NDArray[np.uint32]) -> None:
        counts = self._count[buckets]
        free = counts < self._room[buckets]
        buckets = buckets[free]
        self._rows[self._start[buckets] + counts[free]] = row
        self._count[buckets] += 1


def _signature(file: BinaryIO, row: int) -> Signatures:
    return np.frombuffer(os.pread(file.fileno(), ROW_BYTES, row * ROW_BYTES), "<u4")


def _shared_buckets(
    file: BinaryIO, folder: Path, total: int, bands: int, width: int
) -> tuple[npt.NDArray[np.uint32], npt.NDArray[np.uint32], npt.NDArray[np.uint8]]:
    """(rows, buckets), sorted, for every bucket that a row shares with another; how many kept rows each may hold."""
    room = [np.empty(0, np.uint8)]
    used = 0
    with tempfile.TemporaryFile(dir=folder) as columns, tempfile.TemporaryFile(dir=folder) as found:
        _write_columns(file, columns, total, bands, width)
        for band in range(bands):
            keys = np.frombuffer(os.pread(columns.fileno(), total * 8, band * total * 8), np.uint64)
            order = np.argsort(keys, kind="stable").astype(np.uint32)
            same = keys[order][1:] == keys[order][:-1]
            shares = np.zeros(total, np.bool_)
            shares[1:] |= same
            shares[:-1] |= same
            begins = shares.copy()
            begins[1:] &= ~same
            buckets = np.cumsum(begins[shares]) - 1
            sizes = np.bincount(buckets)
            buckets += used
            found.write(((order[shares].astype(np.uint64) << _HALF) | buckets.astype(np.uint64)).tobytes())
            room.append(np.minimum(sizes, KEPT_OF_A_BUCKET).astype(np.uint8))
            used += len(sizes)
        found.seek(0)
        memberships = np.fromfile(found, np.uint64)
    memberships.sort()
    return (memberships >> _HALF).astype(np.uint32), memberships.astype(np.uint32), np.concatenate(room)


def _write_columns(file: BinaryIO, columns: BinaryIO, total: int, bands: int, width: int) -> None:
    """A 64-bit number of each band of each row, band after band."""
    factors = np.frombuffer(hashlib.shake_128(b"band").digest(8 * width), "<u8") | np.uint64(1)
    for start in range(0, total, _ROWS_AT_ONCE):
        count = min(_ROWS_AT_ONCE, total - start)
        rows = np.frombuffer(os.pread(file.fileno(), count * ROW_BYTES, start * ROW_BYTES), "<u4").reshape(count, -1)
        for band in range(bands):
            numbers = rows[:, band * width : (band + 1) * width].astype(np.uint64)
            numbers ^= numbers << _HALF
            os.pwrite(columns.fileno(), (numbers * factors).sum(axis=1).tobytes(), (band * total + start) * 8)
