"""How sure a figure is: intervals for shares, exact paired tests, and the unbiased pass@k."""

from __future__ import annotations

import math
from collections.abc import Sequence

import msgspec

Z_95 = 1.959963984540054  # 97.5th percentile of the standard normal distribution


class Interval(msgspec.Struct, frozen=True):
    """A share with its 95 % interval, all in [0, 1]."""

    share: float
    low: float
    high: float


class PairedTest(msgspec.Struct, frozen=True):
    """How often the second of two models was better or worse on the same prompt, and how likely by chance."""

    better: int
    worse: int
    p_value: float
    """Two-sided: the probability of a difference at least this large if neither model were better."""


def wilson(successes: float, total: int) -> Interval:
    """Wilson's score interval (Wilson 1927; Newcombe 1998, method 3); (0, 1) wide when nothing was measured."""
    if total == 0:
        return Interval(0.0, 0.0, 1.0)
    share = successes / total
    scale = 1 + Z_95**2 / total
    middle = (share + Z_95**2 / (2 * total)) / scale
    half = Z_95 * math.sqrt(share * (1 - share) / total + Z_95**2 / (4 * total**2)) / scale
    # Rounding must not push the ends past an observed 0 or 1.
    return Interval(share, min(max(0.0, middle - half), share), max(min(1.0, middle + half), share))


def mcnemar(first: Sequence[bool], second: Sequence[bool]) -> PairedTest:
    """McNemar's exact test: a two-sided binomial test on the prompts where just one of the two succeeded."""
    better = sum(b and not a for a, b in zip(first, second, strict=True))
    worse = sum(a and not b for a, b in zip(first, second, strict=True))
    return PairedTest(better, worse, binomial_two_sided(better, worse))


def sign_test(first: Sequence[float | None], second: Sequence[float | None]) -> PairedTest:
    """Sign test on paired values of which the smaller is the better; None is worse than any, ties don't count."""
    pairs = [(math.inf if a is None else a, math.inf if b is None else b) for a, b in zip(first, second, strict=True)]
    better = sum(b < a for a, b in pairs)
    worse = sum(b > a for a, b in pairs)
    return PairedTest(better, worse, binomial_two_sided(better, worse))


def binomial_two_sided(wins: int, losses: int) -> float:
    """P-value of `wins` against `losses` under a fair coin; 1 without any toss."""
    tosses = wins + losses
    tail = sum(math.comb(tosses, k) for k in range(min(wins, losses) + 1))
    return min(1.0, float(2 * tail / 2**tosses))


def pass_at_k(samples: int, passed: int, k: int) -> float:
    """Unbiased probability that one of k answers passes (Chen et al. 2021, equation 1).

    `samples` answers were drawn for the problem, `passed` of them pass; needs samples >= k.
    """
    if not 0 <= passed <= samples or not 1 <= k <= samples:
        raise ValueError(f"pass@{k} can't be estimated from {passed} of {samples}")
    return 1.0 - math.comb(samples - passed, k) / math.comb(samples, k)
