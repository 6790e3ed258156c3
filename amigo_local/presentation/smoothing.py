"""Smoothing: the course of a noisy series over its steps."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

SPAN_SHARE = 0.02
"""Of the steps that are shown: a wobble shorter than this is noise to the eye."""
MOST_POINTS = 512
"""Of a course: they lie far closer than the span."""


def smoothed(steps: Sequence[float], values: Sequence[float], span: float | None = None) -> list[float]:
    """At each point the mean of all, weighted by exp(-distance in steps / span): kernel regression (Nadaraya, 1964;
    Watson, 1964), whose kernel looks to both sides, so that a falling curve isn't drawn too late.

    A point counts for the steps that it stands for: a series that was thinned looks the same. A value that isn't
    finite stays as it is and weighs nothing. steps: ascending. span None: SPAN_SHARE of the steps there are, at least
    one step.
    """
    if not steps:
        return []
    if span is None:
        span = max(1.0, SPAN_SHARE * (steps[-1] - steps[0]))
    shares = list(_shares(steps))
    points = [
        (value * share, share) if math.isfinite(value) else (0.0, 0.0)
        for value, share in zip(values, shares, strict=True)
    ]
    before = _sums(steps, points, span)
    after = _sums([-step for step in reversed(steps)], points[::-1], span)[::-1]
    course = []
    for value, (own, share), (left, left_weight), (right, right_weight) in zip(
        values, points, before, after, strict=True
    ):
        weight = left_weight + right_weight + share
        course.append((left + right + own) / weight if share else value)
    return course


def thinned(steps: Sequence[float], values: Sequence[float]) -> tuple[list[float], list[float]]:
    """Of more than MOST_POINTS, neighbours are put together into their mean; the last one keeps its place. What isn't
    finite is left out then."""
    size = -(-len(steps) // MOST_POINTS)
    if size <= 1:
        return list(steps), list(values)
    places, means = [], []
    for at in range(0, len(steps), size):
        row = [value for value in values[at : at + size] if math.isfinite(value)]
        if row:
            span = steps[at : at + size]
            places.append((span[0] + span[-1]) / 2)
            means.append(sum(row) / len(row))
    if places:
        places[-1] = steps[-1]
    return places, means


def course(steps: Sequence[float], values: Sequence[float]) -> tuple[list[float], list[float]]:
    """Steps and smoothed values, few enough to draw them often."""
    places, means = thinned(steps, values)
    return places, smoothed(places, means)


def _shares(steps: Sequence[float]) -> Iterator[float]:
    """How many steps each point stands for: up to the middle between it and its neighbours."""
    if len(steps) == 1:
        yield 1.0
        return
    for place, step in enumerate(steps):
        left = step - steps[place - 1] if place else steps[1] - step
        right = steps[place + 1] - step if place + 1 < len(steps) else left
        yield (left + right) / 2


def _sums(steps: Sequence[float], points: Sequence[tuple[float, float]], span: float) -> list[tuple[float, float]]:
    """At each point, what all before it come to: values and weights."""
    sums, total, weight = [], 0.0, 0.0
    for place, step in enumerate(steps):
        if place:
            kept = math.exp(-(step - steps[place - 1]) / span)
            total = kept * (total + points[place - 1][0])
            weight = kept * (weight + points[place - 1][1])
        sums.append((total, weight))
    return sums
