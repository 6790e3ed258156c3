"""How far apart two models' next-token distributions are."""

from __future__ import annotations

import msgspec
import numpy as np
import numpy.typing as npt

from amigo_local.weights.tensor_rows import Rows


class Divergence(msgspec.Struct, frozen=True):
    """Kullback-Leibler divergence in nats over positions, and how often the likeliest token is the same."""

    mean: float
    max: float
    same_top: float
    """Share of positions, 0 to 1."""
    positions: int


def _log_softmax(logits: Rows) -> npt.NDArray[np.float64]:
    wide = logits.astype(np.float64)
    wide -= wide.max(axis=1, keepdims=True)
    result: npt.NDArray[np.float64] = wide - np.log(np.exp(wide).sum(axis=1, keepdims=True))
    return result


class DivergenceMeter:
    """Adds up positions prompt by prompt."""

    def __init__(self) -> None:
        self._values: list[float] = []
        self._same = 0

    def add(self, reference: Rows, other: Rows) -> None:
        """KL(reference || other) at each of (positions, vocabulary); the wider vocabulary is cut to the narrower.

        A vocabulary is wider when the embedding has rows that no token has.
        """
        width = min(reference.shape[1], other.shape[1])
        p, q = _log_softmax(reference[:, :width]), _log_softmax(other[:, :width])
        self._values += [float(value) for value in (np.exp(p) * (p - q)).sum(axis=1)]
        self._same += int(np.count_nonzero(p.argmax(axis=1) == q.argmax(axis=1)))

    def nearer_than(self, other: DivergenceMeter) -> float:
        """Share of positions at which this meter's divergence is the smaller or equal one; both saw the same."""
        pairs = list(zip(self._values, other._values, strict=True))
        return sum(mine <= theirs for mine, theirs in pairs) / len(pairs) if pairs else 1.0

    def result(self) -> Divergence:
        """NaN stays NaN: a broken model must not look like a perfect one."""
        count = len(self._values)
        if not count:
            return Divergence(float("nan"), float("nan"), 0.0, 0)
        return Divergence(float(np.mean(self._values)), float(np.max(self._values)), self._same / count, count)
