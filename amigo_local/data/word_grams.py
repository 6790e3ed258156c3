"""Words and runs of words as 64-bit numbers, for many texts at once: how overlap and near-duplicates are told.

A word is what `\\w+` matches in the lower-case text. Its number is a polynomial of its characters modulo 2^64, a run's
number one of its words (Karp and Rabin 1987); both come from running sums, with no Python object for a word. The
numbers are the same on every machine, so that they can be shipped in the place of texts that mustn't be.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cache

import numpy as np
import numpy.typing as npt

Hashes = npt.NDArray[np.uint64]
Indices = npt.NDArray[np.int64]

CHUNK_CHARACTERS = 1 << 16
"""Texts looked at together: what is made of so many characters (half a megabyte a step) stays in a core's cache."""

# Odd numbers have inverses modulo 2^64; these are the constants of SplitMix64 (Steele, Lea, Flood 2014).
_OF_CHARACTERS = 0x9E3779B97F4A7C15
_OF_WORDS = 0xBF58476D1CE4E5B9
_MIX = np.uint64(0x94D049BB133111EB)
_HALF = np.uint64(32)
_ALL_BITS = (1 << 64) - 1


class Words:
    """Words of some texts, in order: `hashes` is (words,), hashes[starts[t] : starts[t + 1]] those of text t."""

    def __init__(self, hashes: Hashes, starts: Indices) -> None:
        self.hashes = hashes
        self.starts = starts
        self._left = np.repeat(starts[1:], np.diff(starts)) - np.arange(len(hashes))
        powers, self._inverses = _powers(_OF_WORDS, _size_class(len(hashes)))
        self._sums = _running_sums(hashes * powers[: len(hashes)])

    def text_of(self, words: Indices) -> Indices:
        """Which text each of these words (given by index) is in."""
        return np.searchsorted(self.starts, words, side="right") - 1

    def run_starts(self, length: int) -> Indices:
        """Words that begin a run of `length` words within one text."""
        return np.flatnonzero(self._left >= length)

    def has_run(self, starts: Indices, length: int) -> npt.NDArray[np.bool_]:
        """Whether a run of `length` words begins at each of `starts`."""
        fits: npt.NDArray[np.bool_] = self._left[starts] >= length
        return fits

    def runs(self, starts: Indices, length: int | Indices) -> Hashes:
        """Numbers of the runs of `length` words that begin at `starts`."""
        numbers: Hashes = (self._sums[starts + length] - self._sums[starts]) * self._inverses[starts]
        return numbers


def words_of(texts: Sequence[str]) -> Words:
    """Best called with about CHUNK_CHARACTERS at once; see `chunks`."""
    lowered = [text.lower() for text in texts]
    joined = "\n".join(lowered)
    if joined.isascii():
        codes = np.frombuffer(joined.encode("ascii"), np.uint8)
        in_word = _word_characters(128)[codes]
    else:
        codes = np.frombuffer(joined.encode("utf-32-le", "surrogatepass"), np.uint32)
        in_word = _word_characters(0x110000)[codes]
    edges = np.flatnonzero(np.diff(in_word.view(np.int8), prepend=np.int8(0), append=np.int8(0)))
    begins, ends = edges[0::2], edges[1::2]
    powers, inverses = _powers(_OF_CHARACTERS, _size_class(len(codes)))
    sums = _running_sums(codes * powers[: len(codes)])
    hashes = (sums[ends] - sums[begins]) * inverses[begins]
    hashes ^= hashes >> _HALF
    hashes *= _MIX
    hashes ^= hashes >> _HALF
    text_begins = np.cumsum([0, *(len(text) + 1 for text in lowered)])
    return Words(hashes, np.searchsorted(begins, text_begins))


def chunks(lengths: Sequence[int]) -> Iterator[slice]:
    """Which texts to look at together, given their characters; every text is in one slice, in order."""
    start = characters = 0
    for index, length in enumerate(lengths):
        if characters and characters + length > CHUNK_CHARACTERS:
            yield slice(start, index)
            start, characters = index, 0
        characters += length
    if start < len(lengths):
        yield slice(start, len(lengths))


def _running_sums(values: Hashes) -> Hashes:
    """(n,) → (n + 1,), beginning with 0, modulo 2^64."""
    sums = np.zeros(len(values) + 1, np.uint64)
    np.cumsum(values, out=sums[1:])
    return sums


def _size_class(count: int) -> int:
    """The next power of two, so that few tables of powers are made."""
    return max(1 << 16, 1 << count.bit_length())


@cache
def _powers(base: int, count: int) -> tuple[Hashes, Hashes]:
    """base^0 … base^(count - 1) and their inverses modulo 2^64."""
    tables = []
    for factor in (base, pow(base, -1, 1 << 64)):
        table = np.full(count, np.uint64(factor & _ALL_BITS))
        table[0] = 1
        np.cumprod(table, out=table)
        table.flags.writeable = False
        tables.append(table)
    return tables[0], tables[1]


@cache
def _word_characters(count: int) -> npt.NDArray[np.bool_]:
    """Code point → whether `\\w` matches it: Python's re asks isalnum(), or is it an underscore."""
    table = np.fromiter((chr(code).isalnum() for code in range(count)), np.bool_, count)
    table[ord("_")] = True
    table.flags.writeable = False
    return table
