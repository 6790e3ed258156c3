"""Axes: the round numbers beside a plot, and the range that it shows."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

_ROUND = (1.0, 2.0, 2.5, 5.0, 10.0)
_OUTLIERS = 0.01
"""The share of noisy values at either end that may lie outside of what is shown."""


def ticks(low: float, high: float, most: int) -> list[float]:
    """Round numbers from low to high, evenly spaced, `most` of them or fewer; low where there is no room between."""
    if most < 2 or not high > low:
        return [low]
    rough = (high - low) / (most - 1)
    power = 10.0 ** math.floor(math.log10(rough))
    for factor in _ROUND:
        step = factor * power
        first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
        if 0 <= last - first < most:
            return [round(place * step, 12 - math.floor(math.log10(step))) for place in range(first, last + 1)]
    return [low]


def bounds(values: Iterable[Sequence[float]], noisy: Iterable[Sequence[float]] = ()) -> tuple[float, float] | None:
    """The range that holds all `values` and nearly all `noisy` ones, with room where they are all the same; None where
    nothing is finite."""
    ends: list[float] = []
    for series in values:
        finite = list(filter(math.isfinite, series))
        ends += [min(finite), max(finite)] if finite else []
    for series in noisy:
        finite = sorted(filter(math.isfinite, series))
        if finite:
            outside = int(_OUTLIERS * len(finite))
            ends += [finite[outside], finite[-1 - outside]]
    if not ends:
        return None
    low, high = min(ends), max(ends)
    if high > low:
        return low, high
    room = abs(low) * 0.1 or 1.0
    return low - room, high + room
