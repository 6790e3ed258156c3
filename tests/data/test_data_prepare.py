from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from amigo_local.data.prepare import prepare, read_rows
from amigo_local.data.rendering import load_tokenizer
from amigo_local.domain.errors import Cancelled, InputError
from amigo_local.domain.events import AnyEvent, Table
from amigo_local.domain.recipe import DataSettings, DataSource

MODULES = ("bisect", "base64", "email", "heapq", "shutil", "statistics", "textwrap", "functools")


def settings(limit: int | None = None, **changes: object) -> DataSettings:
    base = DataSettings(sources=(DataSource(stdlib=MODULES, limit=limit),), held_out_fraction=0.3)
    return msgspec.structs.replace(base, **changes)


def test_no_module_is_on_both_sides_and_every_row_can_be_trained_on(checkpoint: Path, tmp_path: Path) -> None:
    events: list[AnyEvent] = []
    figures = prepare(settings(), checkpoint, tmp_path, events.append)
    train, held_out = read_rows(tmp_path / "train.jsonl"), read_rows(tmp_path / "held_out.jsonl")
    assert train and held_out
    assert {row.module for row in train} | {row.module for row in held_out} == set(MODULES)
    assert not {row.module for row in train} & {row.module for row in held_out}
    assert not {row.prompt for row in train} & {row.prompt for row in held_out}
    tokenizer = load_tokenizer(checkpoint)
    for row in [*train, *held_out]:
        assert 0 < row.completion_start < len(row.input_ids) <= 1024
        assert tokenizer.decode(row.input_ids[row.completion_start :]) == row.completion + "<|im_end|>"
        assert row.prompt in tokenizer.decode(row.input_ids[: row.completion_start])
    assert figures["train_samples"] == len(train) and figures["held_out_samples"] == len(held_out)
    assert figures["trained_tokens"] == sum(len(row.input_ids) - row.completion_start for row in train)
    tables = {event.title: event for event in events if isinstance(event, Table)}
    taken = sum(row[2] for row in tables["Samples"].rows if row[1] == "taken")  # type: ignore[misc]
    assert taken == len(train) + len(held_out)
    assert sum(row[1] for row in tables["Length in tokens"].rows) == taken  # type: ignore[misc]
    previews = [event for title, event in tables.items() if title.startswith("Loss mask")]
    assert len(previews) == 3
    assert [row[0] for row in previews[0].rows] == ["masked", "trained"]
    assert str(previews[0].rows[0][2]).endswith("<|im_start|>assistant\n")
    assert str(previews[0].rows[1][2]).startswith("```python\n")


def test_the_same_python_gives_the_same_bytes_in_another_process_and_folder(checkpoint: Path, tmp_path: Path) -> None:
    prepare(settings(), checkpoint, tmp_path / "here", lambda event: None)
    program = (
        "import sys, msgspec; from pathlib import Path; from amigo_local.data.prepare import prepare;"
        "from amigo_local.domain.recipe import DataSettings;"
        "settings = msgspec.json.decode(sys.argv[1], type=DataSettings);"
        "prepare(settings, Path(sys.argv[2]), Path(sys.argv[3]), lambda event: None)"
    )
    arguments = [msgspec.json.encode(settings()).decode(), str(checkpoint), str(tmp_path / "there")]
    subprocess.run([sys.executable, "-c", program, *arguments], check=True, env={"PYTHONHASHSEED": "7"}, timeout=60)
    for name in ("train.jsonl", "held_out.jsonl", "stats.json"):
        assert (tmp_path / "here" / name).read_bytes() == (tmp_path / "there" / name).read_bytes()
        assert str(tmp_path) not in (tmp_path / "here" / name).read_text()
    assert sorted(path.name for path in (tmp_path / "here").iterdir()) == [
        "held_out.jsonl",
        "stats.json",
        "train.jsonl",
    ]


def test_a_limit_takes_exactly_so_many_from_all_modules(checkpoint: Path, tmp_path: Path) -> None:
    prepare(settings(limit=16, max_length_tokens=4096), checkpoint, tmp_path, lambda event: None)
    rows = read_rows(tmp_path / "train.jsonl") + read_rows(tmp_path / "held_out.jsonl")
    assert len(rows) == 16
    assert {row.module for row in rows} == set(MODULES)
    stats = json.loads((tmp_path / "stats.json").read_text())
    counted = {reason: count for source, reason, count in stats["counts"]}
    assert counted["taken"] == 16 and counted["left out: over the source's limit"] > 16


def test_long_samples_are_left_out_and_counted(checkpoint: Path, tmp_path: Path) -> None:
    prepare(settings(max_length_tokens=300), checkpoint, tmp_path, lambda event: None)
    rows = read_rows(tmp_path / "train.jsonl") + read_rows(tmp_path / "held_out.jsonl")
    assert max(len(row.input_ids) for row in rows) <= 300
    stats = json.loads((tmp_path / "stats.json").read_text())
    assert {reason for _, reason, _ in stats["counts"]} >= {"left out: longer than 300 tokens", "taken"}


def test_an_evaluation_prompt_is_kept_out_of_training(checkpoint: Path, tmp_path: Path) -> None:
    prepare(settings(), checkpoint, tmp_path / "all", lambda event: None)
    rows = read_rows(tmp_path / "all" / "train.jsonl")
    leaked = next(row for row in rows if len(row.prompt.split()) > 18)
    prepare(settings(), checkpoint, tmp_path / "clean", lambda event: None, [leaked.prompt])
    assert leaked.prompt not in {row.prompt for row in read_rows(tmp_path / "clean" / "train.jsonl")}
    stats = json.loads((tmp_path / "clean" / "stats.json").read_text())
    assert "left out: overlaps an evaluation" in {reason for _, reason, _ in stats["counts"]}


def test_own_rows_are_mixed_in_and_split_by_row(checkpoint: Path, tmp_path: Path) -> None:
    path = tmp_path / "own.jsonl"
    path.write_text("".join(f'{{"q": "question {n}", "a": "answer {n}"}}\n' for n in range(40)))
    own = DataSource(jsonl=str(path), prompt="q", completion="a")
    prepare(settings(sources=(DataSource(stdlib=("bisect",)), own, own)), checkpoint, tmp_path, lambda event: None)
    train, held_out = read_rows(tmp_path / "train.jsonl"), read_rows(tmp_path / "held_out.jsonl")
    assert len([row for row in [*train, *held_out] if row.source == "own.jsonl"]) == 40  # the repeat is dropped
    assert {row.source for row in train} >= {"own.jsonl"}
    assert 4 <= len([row for row in held_out if row.source == "own.jsonl"]) <= 20
    assert str(tmp_path) not in (tmp_path / "stats.json").read_text()


def test_no_source_and_nothing_left_are_plain_errors(checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="names no data source"):
        prepare(settings(sources=()), checkpoint, tmp_path, lambda event: None)
    with pytest.raises(InputError, match="nothing is left to train on"):
        prepare(settings(max_length_tokens=5), checkpoint, tmp_path / "out", lambda event: None)
    assert not (tmp_path / "out").exists()


def test_cancelling_leaves_nothing_behind(checkpoint: Path, tmp_path: Path) -> None:
    def cancel(event: AnyEvent) -> None:
        raise Cancelled

    with pytest.raises(Cancelled):
        prepare(settings(), checkpoint, tmp_path / "out", cancel)
    assert not (tmp_path / "out").exists()


def test_importing_the_room_costs_nothing() -> None:
    program = (
        "import sys, amigo_local.data, amigo_local.data.prepare, amigo_local.evaluation;"
        "heavy = {'torch', 'transformers', 'numpy', 'datasets'} & set(sys.modules); assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)
