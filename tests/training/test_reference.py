"""The file of reference log-probabilities: whole, resumed, or of something else."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from amigo_local.domain.errors import Cancelled
from amigo_local.domain.events import AnyEvent
from amigo_local.training.reference import Logps, ReferenceFile, reference_logps

OF = {"adapter": "sha256:a", "data": "sha256:d"}
STEPS = ((3, 1), (0, 2), (1, 4))


def value(pair: int) -> Logps:
    return (-pair - 0.5, -2.0 * pair)


class Model:
    """Gives each pair by itself, and remembers what it was asked."""

    def __init__(self) -> None:
        self.asked: list[int] = []

    def __call__(self, step: Sequence[int], told: Callable[[int], None]) -> dict[int, Logps]:
        self.asked += step
        told(1)
        told(2)
        return {pair: value(pair) for pair in step}


def test_every_pair_is_computed_once_and_found_again(tmp_path: Path) -> None:
    model, silent = Model(), list[AnyEvent]().append
    first = reference_logps(ReferenceFile(tmp_path / "r", OF), STEPS, model, silent)
    assert first == {pair: value(pair) for pair in range(5)}
    assert model.asked == [3, 1, 0, 2, 1, 4]  # 1 again, in the company of 4
    again = Model()
    assert reference_logps(ReferenceFile(tmp_path / "r", OF), STEPS, again, silent) == first
    assert again.asked == []
    assert [path.name for path in tmp_path.iterdir()] == ["r"]


def test_more_steps_add_what_they_need(tmp_path: Path) -> None:
    reference_logps(ReferenceFile(tmp_path / "r", OF), STEPS[:1], Model(), lambda event: None)
    model = Model()
    found = reference_logps(ReferenceFile(tmp_path / "r", OF), STEPS, model, lambda event: None)
    assert found == {pair: value(pair) for pair in range(5)}
    assert model.asked == [0, 2, 1, 4]
    assert ReferenceFile(tmp_path / "r", OF).found == found


@pytest.mark.parametrize("other", [{**OF, "adapter": "sha256:b"}, {**OF, "data": "sha256:e"}])
def test_what_was_computed_for_something_else_is_not_used(other: dict[str, object], tmp_path: Path) -> None:
    reference_logps(ReferenceFile(tmp_path / "r", OF), STEPS, Model(), lambda event: None)
    assert ReferenceFile(tmp_path / "r", other).found == {}
    model = Model()
    reference_logps(ReferenceFile(tmp_path / "r", other), STEPS[:1], model, lambda event: None)
    assert model.asked == [3, 1]
    assert ReferenceFile(tmp_path / "r", OF).found == {}


def test_cancelled_it_keeps_what_it_has_and_goes_on_from_there(tmp_path: Path) -> None:
    def cancel(event: AnyEvent) -> None:
        raise Cancelled

    times = iter([0.0, 0.5, 0.9, 1.5, 1.5])  # a progress event is due a second in: in the middle of the second step
    with pytest.raises(Cancelled):
        reference_logps(ReferenceFile(tmp_path / "r", OF), STEPS, Model(), cancel, clock=lambda: next(times))
    assert sorted(ReferenceFile(tmp_path / "r", OF).found) == [1, 3]
    assert not (tmp_path / "r").exists()
    model = Model()
    reference_logps(ReferenceFile(tmp_path / "r", OF), STEPS, model, lambda event: None)
    assert model.asked == [0, 2, 1, 4]


@pytest.mark.parametrize("damage", ["cut", "zeros"])
def test_a_record_that_a_kill_or_a_power_failure_tore_is_computed_again(damage: str, tmp_path: Path) -> None:
    reference_logps(ReferenceFile(tmp_path / "r", OF), STEPS, Model(), lambda event: None)
    content = (tmp_path / "r").read_bytes()
    torn = content[:-5] if damage == "cut" else content[:-40] + bytes(40)  # records of 16 bytes
    (tmp_path / "r").rename(tmp_path / "r.partial")
    (tmp_path / "r.partial").write_bytes(torn)
    assert len(ReferenceFile(tmp_path / "r", OF).found) == (4 if damage == "cut" else 2)
    found = reference_logps(ReferenceFile(tmp_path / "r", OF), STEPS, Model(), lambda event: None)
    assert found == {pair: value(pair) for pair in range(5)}
    assert ReferenceFile(tmp_path / "r", OF).found == found
