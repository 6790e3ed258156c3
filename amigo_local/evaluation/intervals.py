"""Intervals of what is no plain share: means of shares, differences of shares, means of counts."""

from __future__ import annotations

import math
import random
import statistics
from collections.abc import Sequence

from amigo_local.evaluation.statistics import Interval, wilson

RESAMPLES = 1000
"""The ends of the interval then vary by about a twentieth of its width."""


def mean_share(values: Sequence[float]) -> Interval:
    """Mean of values in [0, 1]; (0, 1) wide when there are none.

    By Wilson's formula: no values in [0, 1] with mean m vary more than the m (1 - m) of zeros and ones, so it is wide
    enough, and unlike a bootstrap it isn't empty when a handful of answers are all alike.
    """
    return wilson(sum(values), len(values))  # sums of shares are as good as counts here


def difference(first: Interval, second: Interval) -> Interval:
    """`first` minus `second`, two independent shares; in [-1, 1] (Newcombe 1998, Statistics in Medicine 17:873,
    method 10)."""
    share = first.share - second.share
    low = share - math.hypot(first.share - first.low, second.high - second.share)
    high = share + math.hypot(first.high - first.share, second.share - second.low)
    return Interval(share, low, high)


def bootstrap_mean(values: Sequence[float], seed: int = 0) -> Interval:
    """Mean of any numbers, with the percentile interval of resampled means (Efron 1979); needs at least one."""
    generator = random.Random(seed)
    mean, count = statistics.fmean(values), len(values)
    means = sorted(statistics.fmean(generator.choices(values, k=count)) for _ in range(RESAMPLES))
    edge = RESAMPLES // 40  # 2.5 % on either side
    return Interval(mean, min(mean, means[edge]), max(mean, means[-edge - 1]))
