"""How far apart two models' next-token distributions are, and how much of a known change one of them shows."""

from __future__ import annotations

import math
from collections.abc import Iterator

import msgspec
import numpy as np
import numpy.typing as npt

from amigo_local.domain.artifact import Figure
from amigo_local.weights.kernels import Rows

_Wide = npt.NDArray[np.float64]
_BLOCK_ELEMENTS = 1 << 20  # 8 MiB in float64


class Divergence(msgspec.Struct, frozen=True):
    """Kullback-Leibler divergence in nats over positions, and how often the likeliest token is the same."""

    mean: float
    max: float
    same_top: float
    """Share of positions, 0 to 1."""
    positions: int


class ChangeShare(msgspec.Struct, frozen=True):
    """How much of a change is in a model: 1 all of it, 0 none, NaN when there is no change."""

    share: float
    error: float
    """Standard error."""

    def figures(self, name: str) -> dict[str, Figure]:
        known = not math.isnan(self.share)
        return {name: self.share if known else None, f"{name}_error": self.error if known else None}


def _log_softmax(logits: Rows) -> _Wide:
    wide = logits.astype(np.float64)
    wide -= wide.max(axis=1, keepdims=True)
    result: _Wide = wide - np.log(np.exp(wide).sum(axis=1, keepdims=True))
    return result


def _blocks(*logits: Rows) -> Iterator[tuple[Rows, ...]]:
    """The same positions of each, a few at a time, cut to the narrowest vocabulary.

    A vocabulary is wider when the embedding has rows that no token has.
    """
    width = min(rows.shape[1] for rows in logits)
    step = max(1, _BLOCK_ELEMENTS // width)
    for start in range(0, len(logits[0]), step):
        yield tuple(rows[start : start + step, :width] for rows in logits)


def divergence(reference: Rows, other: Rows) -> Divergence:
    """KL(reference || other) at each of (positions, vocabulary) logits.

    NaN stays NaN: a broken model must not look like a perfect one. So do no positions at all.
    """
    if not len(reference):
        return Divergence(float("nan"), float("nan"), 0.0, 0)
    values: list[float] = []
    same = 0
    for mine, theirs in _blocks(reference, other):
        p, q = _log_softmax(mine), _log_softmax(theirs)
        values += (np.exp(p) * (p - q)).sum(axis=1).tolist()
        same += int(np.count_nonzero(p.argmax(axis=1) == q.argmax(axis=1)))
    return Divergence(float(np.mean(values)), float(np.max(values)), same / len(values), len(values))


def change_share(before: Rows, after: Rows, plain: Rows, changed: Rows) -> ChangeShare:
    """How much of `after - before` is in `changed - plain`: the slope of the regression of one on the other.

    Logits are compared as the Fisher information does it, by their covariance under the distribution `after`, so
    that a constant added to all logits is nothing and unlikely tokens weigh little. Rounding noise, which has
    nothing to do with the change, averages out over the vocabulary and the positions: the share shows a change far
    below the noise, where divergences can't. NaN when there is no change.
    """
    both, alone = [], []
    for rows in _blocks(before, after, plain, changed):
        wide = [part.astype(np.float64) for part in rows]
        weights = np.exp(_log_softmax(rows[1]))
        expected, found = (
            each - (weights * each).sum(1, keepdims=True) for each in (wide[1] - wide[0], wide[3] - wide[2])
        )
        both += (weights * expected * found).sum(1).tolist()
        alone += (weights * expected * expected).sum(1).tolist()
    total = sum(alone)
    if not total > 0:
        return ChangeShare(float("nan"), float("nan"))
    share = sum(both) / total
    # Of a ratio of sums: residuals against the slope.
    error = float(np.sqrt(np.sum((np.array(both) - share * np.array(alone)) ** 2))) / total
    return ChangeShare(share, error)
