"""The course of a noisy series."""

from __future__ import annotations

import math
import random

import pytest

from amigo_local.presentation.smoothing import MOST_POINTS, course, smoothed, thinned


def by_definition(steps: list[float], values: list[float], span: float) -> list[float]:
    """The same for evenly spaced steps, as the formula says it."""
    course = []
    for here in steps:
        weights = [math.exp(-abs(step - here) / span) for step in steps]
        course.append(sum(w * v for w, v in zip(weights, values, strict=True)) / sum(weights))
    return course


def test_it_is_the_mean_weighted_by_distance() -> None:
    rng = random.Random(1)
    steps, values = [float(5 * i) for i in range(60)], [rng.gauss(1, 0.3) for _ in range(60)]
    assert smoothed(steps, values, 12.0) == pytest.approx(by_definition(steps, values, 12.0))


def test_noise_shrinks_and_the_course_stays_without_lagging() -> None:
    rng = random.Random(2)
    steps = [float(i) for i in range(1000)]
    true = [0.5 + math.exp(-i / 200) for i in steps]
    course = smoothed(steps, [value + rng.gauss(0, 0.1) for value in true])
    errors = [abs(a - b) for a, b in zip(course, true, strict=True)][50:-50]
    assert max(errors) < 0.06 and abs(sum(a - b for a, b in zip(course, true, strict=True)) / 1000) < 0.01


def test_a_thinned_series_looks_the_same() -> None:
    steps = [float(i) for i in range(4000)]
    values = [1 + math.sin(i / 300) for i in steps]
    whole = smoothed(steps, values)
    thinned = smoothed(steps[::4], values[::4])
    assert max(abs(a - b) for a, b in zip(whole[::4], thinned, strict=True)) < 0.005


def test_few_points_constants_and_what_is_not_finite() -> None:
    assert smoothed([], []) == []
    assert smoothed([7], [0.5]) == [0.5]
    assert smoothed([1, 2, 3], [2.0, 2.0, 2.0]) == pytest.approx([2.0] * 3)
    course = smoothed([1, 2, 3], [1.0, math.nan, 1.0])
    assert course[0] == course[2] == pytest.approx(1.0) and math.isnan(course[1])


def test_a_course_of_many_points_is_that_of_all_of_them() -> None:
    steps = [float(i) for i in range(4001)]
    values = [1 + math.sin(i / 500) + 0.3 * math.sin(i * 1.7) for i in steps]
    whole = smoothed(steps, values)
    places, means = course(steps, values)
    assert len(places) == len(means) <= MOST_POINTS and places[-1] == 4000
    near = [whole[round(place)] for place in places]
    assert max(abs(a - b) for a, b in zip(near, means, strict=True)) < 0.02
    assert course(steps[:9], values[:9]) == (steps[:9], smoothed(steps[:9], values[:9]))


def test_thinning_keeps_means_and_leaves_out_what_is_not_finite() -> None:
    values = [1.0, 3.0] * MOST_POINTS
    values[0] = math.nan
    steps, means = thinned(range(2 * MOST_POINTS), values)
    assert means == [3.0] + [2.0] * (MOST_POINTS - 1) and steps[:2] == [0.5, 2.5]
