"""SeenKeys: which rows of a stream were there before, in a few bytes for each."""

from __future__ import annotations

import hashlib

import numpy as np
import numpy.typing as npt

from amigo_local.data.pair import Pair

Keys = npt.NDArray[np.uint64]

# str.split takes it for white space, so it can't be in a squeezed text.
_BETWEEN = "\x1f"


def key_of(pair: Pair) -> int:
    """64 bits of the prompt and its answers, whatever their white space. Among ten million rows the chance that two
    different ones share a key is 3 in a million."""
    squeezed = _BETWEEN.join([" ".join(text.split()) for text in (pair.prompt, *pair.answers)])
    digest = hashlib.blake2b(squeezed.encode("utf-8", "surrogatepass"), digest_size=8)
    return int.from_bytes(digest.digest(), "little")


class SeenKeys:
    """Sorted runs of keys whose sizes at least halve from one to the next, so that there are few (O'Neil et al. 1996).

    A key costs 8 bytes, and 16 more for a moment while the largest runs are merged.
    """

    def __init__(self) -> None:
        self._runs: list[Keys] = []

    def __len__(self) -> int:
        return sum(map(len, self._runs))

    def add(self, keys: Keys) -> npt.NDArray[np.bool_]:
        """(n,) True where a key is new; the first of equal ones within `keys` is."""
        distinct, first = np.unique(keys, return_index=True)
        unseen = np.ones(len(distinct), np.bool_)
        for run in self._runs:
            at = np.minimum(np.searchsorted(run, distinct), len(run) - 1)
            unseen &= run[at] != distinct
        new = np.zeros(len(keys), np.bool_)
        new[first[unseen]] = True
        self._append(distinct[unseen])
        return new

    def _append(self, run: Keys) -> None:
        if not len(run):
            return
        while self._runs and len(self._runs[-1]) < 2 * len(run):
            run = np.concatenate([self._runs.pop(), run])
            run.sort(kind="stable")  # finds that it is two sorted halves and merges them
        self._runs.append(run)
