from __future__ import annotations

import itertools
import math
from fractions import Fraction

import pytest

from amigo_local.evaluation.statistics import binomial_two_sided, mcnemar, pass_at_k, sign_test, wilson


@pytest.mark.parametrize(
    ("successes", "total", "low", "high"),
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_wilson_gives_the_published_intervals(successes: int, total: int, low: float, high: float) -> None:
    """Newcombe 1998, Statistics in Medicine 17:857, table I, method 3."""
    interval = wilson(successes, total)
    assert (round(interval.low, 4), round(interval.high, 4)) == (low, high)


def test_wilson_at_humaneval_size_is_about_seven_and_a_half_points_wide() -> None:
    interval = wilson(82, 164)
    assert 0.074 < interval.high - 0.5 < 0.077
    assert wilson(164, 164).high == 1.0
    assert (wilson(0, 0).low, wilson(0, 0).high) == (0.0, 1.0)


def test_the_exact_binomial_equals_enumerating_every_sequence_of_tosses() -> None:
    for wins, losses in [(0, 0), (1, 0), (5, 0), (3, 2), (1, 8), (4, 4), (0, 10)]:
        tosses = wins + losses
        extreme = min(wins, losses)
        outcomes = [sum(side) for side in itertools.product((0, 1), repeat=tosses)]
        as_far = sum(outcome <= extreme or outcome >= tosses - extreme for outcome in outcomes)
        assert binomial_two_sided(wins, losses) == pytest.approx(float(Fraction(as_far, 2**tosses)))
    assert binomial_two_sided(1, 8) == pytest.approx(0.0390625)


def test_mcnemar_counts_only_where_the_two_differ() -> None:
    test = mcnemar([True, True, False, False, False], [True, False, True, True, True])
    assert (test.better, test.worse, test.p_value) == (3, 1, 0.625)


def test_the_sign_test_takes_no_code_for_worse_than_any_and_leaves_out_ties() -> None:
    test = sign_test([30, 20, None, 5, None, 0], [0, 0, 3, 5, None, None])
    assert (test.better, test.worse) == (3, 1)


def test_pass_at_k_equals_drawing_every_subset() -> None:
    for samples, passed, k in [(5, 2, 1), (5, 2, 3), (6, 0, 2), (6, 6, 6), (7, 1, 3), (4, 3, 2)]:
        draws = list(itertools.combinations([True] * passed + [False] * (samples - passed), k))
        assert pass_at_k(samples, passed, k) == pytest.approx(sum(any(draw) for draw in draws) / len(draws))
    assert math.isclose(pass_at_k(200, 50, 1), 0.25)
    for wrong in [(3, 4, 1), (3, 1, 4), (3, 1, 0)]:
        with pytest.raises(ValueError, match="can't be estimated"):
            pass_at_k(*wrong)
