"""Ranges and round numbers beside a plot."""

from __future__ import annotations

import math
import random

import pytest

from amigo_local.presentation.axes import bounds, ticks


@pytest.mark.parametrize(
    ("low", "high", "most", "expected"),
    [
        (0.0, 1.0, 6, [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]),
        (0.55, 1.74, 6, [0.6, 0.8, 1.0, 1.2, 1.4, 1.6]),
        (0.0, 601.0, 10, [0.0, 100.0, 200.0, 300.0, 400.0, 500.0, 600.0]),
        (1.0, 180.0, 2, [100.0]),
        (1e-6, 2e-4, 5, [5e-5, 1e-4, 1.5e-4, 2e-4]),
        (3.0, 3.0, 5, [3.0]),
    ],
)
def test_ticks_are_round_and_no_more_than_asked(low: float, high: float, most: int, expected: list[float]) -> None:
    assert ticks(low, high, most) == expected


def test_ticks_lie_within_the_range_whatever_it_is() -> None:
    rng = random.Random(4)
    for _ in range(2000):
        low = rng.uniform(-1, 1) * 10 ** rng.randint(-9, 9)
        high = low + abs(rng.gauss(0, 1)) * 10 ** rng.randint(-9, 9)
        most = rng.randint(2, 12)
        found = ticks(low, high, most)
        assert 1 <= len(found) <= most
        slack = 1e-9 * (high - low) + 1e-12 * abs(low)
        assert all(low - slack <= tick <= high + slack for tick in found)


def test_bounds_hold_every_value_but_the_rare_outliers_of_noise() -> None:
    assert bounds([[1.0, 3.0], [2.0, math.nan]]) == (1.0, 3.0)
    assert bounds([[1.0]], [[1.0] * 500 + [90.0, -90.0]]) == pytest.approx((0.9, 1.1))
    assert bounds([], [[1.0, 90.0]]) == (1.0, 90.0)


def test_bounds_of_one_value_leave_room_around_it_and_of_none_are_none() -> None:
    assert bounds([[2.0, 2.0]]) == pytest.approx((1.8, 2.2))
    assert bounds([[0.0]]) == (-1.0, 1.0)
    assert bounds([[math.nan], []]) is None
