"""Rows, their labels and their order."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest

from amigo_local.domain.errors import InputError
from amigo_local.domain.events import AnyEvent, Note
from amigo_local.domain.recipe import TrainSettings
from amigo_local.training.sample_file import SampleFile
from amigo_local.training.samples import Sample, file_digest, total_steps, training_order


def test_nothing_before_the_completion_is_a_label() -> None:
    assert Sample([11, 12, 13, 14, 15], 3).labels == [-100, -100, -100, 14, 15]


def write(folder: Path, *rows: object) -> Path:
    lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    (folder / "train.jsonl").write_text("\n".join(lines) + "\n")
    return folder / "train.jsonl"


GOOD = {"input_ids": [1, 2, 3], "completion_start": 2, "prompt": "p", "completion": "c"}
EMPTY = {**GOOD, "completion_start": 3}
LONG = {"input_ids": list(range(1, 9)), "completion_start": 2}


@pytest.mark.parametrize(
    ("row", "complaint"),
    [
        ("{not json", "train.jsonl:2: "),
        ({"input_ids": [1, 2]}, "train.jsonl:2: .*completion_start"),
        ({"input_ids": ["a"], "completion_start": 1}, "train.jsonl:2: .*input_ids"),
        ({"input_ids": [], "completion_start": 0}, "completion_start is 0, expected 1 to 0 for 0 tokens"),
        ({**GOOD, "completion_start": 0}, "completion_start is 0, expected 1 to 3"),
        ({**GOOD, "completion_start": 4}, "completion_start is 4, expected 1 to 3 for 3 tokens"),
        ({**GOOD, "input_ids": [1, 99, 3]}, "token id 99 is outside the base's vocabulary of 50"),
        ({**GOOD, "input_ids": [1, -1, 3]}, "token id -1 is outside"),
    ],
)
def test_a_bad_row_is_refused_by_file_and_line(row: object, complaint: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=complaint) as refused:
        SampleFile(write(tmp_path, GOOD, row), vocabulary=50)
    assert "prepare" in refused.value.hint


def test_no_file_and_no_rows_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such file"):
        SampleFile(tmp_path / "train.jsonl", 50)
    with pytest.raises(InputError, match="holds no rows"):
        SampleFile(write(tmp_path, ""), 50)


def test_samples_that_teach_nothing_or_are_too_long_are_left_out_and_counted(tmp_path: Path) -> None:
    rows = SampleFile(write(tmp_path, EMPTY, GOOD, "", LONG, LONG, GOOD), 50, max_length_tokens=7)
    assert (rows.without_gradient, rows.too_long, list(rows.lengths)) == (1, 2, [3, 3])
    assert [(row.index, row.line) for row in rows] == [(0, 2), (1, 6)]
    assert rows[1].sequences == (Sample([1, 2, 3], 2),)
    assert rows.digest == file_digest(rows.path)
    events: list[AnyEvent] = []
    rows.tell(events.append)
    assert [(e.text, e.level) for e in events if isinstance(e, Note)] == [
        ("train.jsonl: 2 samples are longer than the limit, and left out", "warning"),
        ("train.jsonl: 1 samples have no completion, and are left out", "info"),
    ]


def test_a_set_without_a_single_trainable_token_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="1 samples are longer than 7 tokens, 2 have no token after completion_start"):
        SampleFile(write(tmp_path, EMPTY, EMPTY, LONG), 50, max_length_tokens=7)


def test_a_file_that_changes_or_goes_while_it_is_trained_on_is_told(tmp_path: Path) -> None:
    rows = SampleFile(write(tmp_path, GOOD, GOOD), 50)
    write(tmp_path, {**GOOD, "input_ids": [1, 2, 3, 4]}, GOOD)
    with pytest.raises(InputError, match=r"train\.jsonl:1 changed"):
        rows[0]
    rows.path.unlink()
    with pytest.raises(InputError, match="can't be read any more"):
        rows[1]


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
