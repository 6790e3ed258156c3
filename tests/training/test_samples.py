"""Rows, their labels and their order."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest

from amigo_local.domain.errors import InputError
from amigo_local.domain.recipe import TrainSettings
from amigo_local.training.samples import Sample, read_samples, total_steps, training_order


def test_nothing_before_the_completion_is_a_label() -> None:
    assert Sample([11, 12, 13, 14, 15], 3).labels == [-100, -100, -100, 14, 15]


def write(folder: Path, *rows: object) -> Path:
    lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    (folder / "train.jsonl").write_text("\n".join(lines) + "\n")
    return folder


GOOD = {"input_ids": [1, 2, 3], "completion_start": 2, "prompt": "p", "completion": "c"}


@pytest.mark.parametrize(
    ("row", "complaint"),
    [
        ("{not json", "train.jsonl:2: "),
        ({"input_ids": [1, 2]}, "train.jsonl:2: .*completion_start"),
        ({"input_ids": ["a"], "completion_start": 1}, "train.jsonl:2: .*input_ids"),
        ({**GOOD, "completion_start": 0}, "completion_start is 0, expected 1 to 2"),
        ({**GOOD, "completion_start": 3}, "completion_start is 3, expected 1 to 2 for 3 tokens"),
        ({**GOOD, "input_ids": [1, 99, 3]}, "token id 99 is outside the base's vocabulary of 50"),
        ({**GOOD, "input_ids": [1, -1, 3]}, "token id -1 is outside"),
    ],
)
def test_a_bad_row_is_refused_by_file_and_line(row: object, complaint: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=complaint) as refused:
        read_samples(write(tmp_path, GOOD, row), vocabulary=50)
    assert "prepare" in refused.value.hint


def test_no_file_and_no_rows_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such file"):
        read_samples(tmp_path, 50)
    with pytest.raises(InputError, match="holds no rows"):
        read_samples(write(tmp_path, ""), 50)


def test_steps_come_from_epochs_unless_max_steps_is_fewer() -> None:
    assert total_steps(20, TrainSettings(epochs=2, effective_batch=8)) == 5
    assert total_steps(20, TrainSettings(epochs=2, effective_batch=8, max_steps=3)) == 3
    assert total_steps(20, TrainSettings(epochs=2, effective_batch=8, max_steps=9)) == 5
    assert total_steps(3, TrainSettings(epochs=1, effective_batch=8)) == 1


def test_every_epoch_is_a_permutation_and_batches_run_from_long_to_short() -> None:
    lengths = [(index * 37) % 101 + 1 for index in range(30)]
    settings = TrainSettings(epochs=2, effective_batch=8, seed=3)
    order = training_order(lengths, settings)
    assert Counter(order) == dict.fromkeys(range(30), 2)
    # 30 is no multiple of 8: the fourth batch holds the last 6 of one epoch and the first 2 of the next.
    assert len(set(order[:24])) == 24
    for start in range(0, 60, 8):
        batch = [lengths[index] for index in order[start : start + 8]]
        assert batch == sorted(batch, reverse=True)
    assert order[:8] != training_order(lengths, TrainSettings(epochs=2, effective_batch=8, seed=4))[:8]
    assert order[:16] == training_order(lengths, TrainSettings(epochs=2, effective_batch=8, seed=3, max_steps=2))
