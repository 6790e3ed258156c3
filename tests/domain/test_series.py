from __future__ import annotations

from amigo_local.domain.series import Series


def test_a_long_series_is_thinned_and_keeps_its_first_and_last_point() -> None:
    series = Series(most_points=100)
    for step in range(1, 100_001):
        series.add(step, step * 0.5)
    assert 50 <= len(series) <= 100
    assert (series.steps[0], series.steps[-1]) == (1, 100_000)
    assert series.values == [step * 0.5 for step in series.steps]
    assert series.steps == sorted(series.steps)


def test_steps_trained_again_from_a_checkpoint_replace_the_old_ones() -> None:
    series = Series()
    for step in (1, 2, 3, 4, 5):
        series.add(step, 1.0)
    series.add(3, 7.0)
    assert series.steps == [1, 2, 3]
    assert series.values == [1.0, 1.0, 7.0]
    assert series.last == 7.0
