from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from amigo_local.data.prepare import prepare, read_rows
from amigo_local.data.reading import Reading
from amigo_local.data.rendering import load_tokenizer
from amigo_local.domain.data_source import DataSource, JsonlSource, StdlibSource
from amigo_local.domain.errors import Cancelled, InputError
from amigo_local.domain.events import AnyEvent, Table
from amigo_local.domain.recipe import DataSettings

MODULES = ("bisect", "base64", "email", "heapq", "shutil", "statistics", "textwrap", "functools")
Table_ = dict[str, int]


def settings(limit: int | None = None, **changes: object) -> DataSettings:
    base = DataSettings(sources=(StdlibSource(stdlib=MODULES, limit=limit),), held_out_fraction=0.3)
    return msgspec.structs.replace(base, **changes)


def silent() -> Reading:
    return Reading(emit=lambda event: None)


def rows_of(folder: Path) -> list[object]:
    return [*read_rows(folder / "train.jsonl"), *read_rows(folder / "held_out.jsonl")]


def counts(folder: Path) -> dict[str, Table_]:
    """Source -> what -> how many."""
    found: dict[str, Table_] = {}
    for source, what, count in json.loads((folder / "stats.json").read_bytes())["counts"]:
        found.setdefault(source, {})[what] = count
    return found


def write(path: Path, rows: list[dict[str, object]]) -> DataSource:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return JsonlSource(jsonl=str(path))


def test_no_module_is_on_both_sides_and_every_row_can_be_trained_on(checkpoint: Path, tmp_path: Path) -> None:
    events: list[AnyEvent] = []
    figures = prepare(settings(), checkpoint, tmp_path, silent, events.append)
    train, held_out = read_rows(tmp_path / "train.jsonl"), read_rows(tmp_path / "held_out.jsonl")
    assert train and held_out
    assert {row.module for row in train} | {row.module for row in held_out} == set(MODULES)
    assert not {row.module for row in train} & {row.module for row in held_out}
    assert not {row.prompt for row in train} & {row.prompt for row in held_out}
    tokenizer = load_tokenizer(checkpoint)
    for row in [*train, *held_out]:
        assert 0 < row.completion_start < len(row.input_ids) <= 1024  # type: ignore[union-attr]
        trained = row.input_ids[row.completion_start :]  # type: ignore[union-attr]
        assert tokenizer.decode(trained) == row.completion + "<|im_end|>"
        assert row.prompt in tokenizer.decode(row.input_ids[: row.completion_start])  # type: ignore[union-attr]
    lengths = sorted(len(row.input_ids) for row in train)
    assert figures == {
        "train_samples": len(train),
        "held_out_samples": len(held_out),
        "train_modules": len({row.module for row in train}),
        "held_out_modules": len({row.module for row in held_out}),
        "train_tokens": sum(lengths),
        "trained_tokens": sum(len(row.parts["trained"]) for row in train),
        "median_length_tokens": lengths[(len(lengths) - 1) // 2],
        "longest_tokens": lengths[-1],
    }
    tables = {event.title: event for event in events if isinstance(event, Table)}
    taken = sum(row[2] for row in tables["Samples"].rows if row[1] == "taken")  # type: ignore[misc]
    assert taken == len(train) + len(held_out)
    assert sum(row[1] for row in tables["Length in tokens"].rows) == taken  # type: ignore[misc]
    previews = [event for title, event in tables.items() if title.startswith("Loss mask")]
    assert len(previews) == 3
    assert [row[0] for row in previews[0].rows] == ["masked", "trained"]
    assert str(previews[0].rows[0][2]).endswith("<|im_start|>assistant\n")
    assert str(previews[0].rows[1][2]).startswith("```python\n")


def test_rows_stay_in_the_order_of_their_sources(checkpoint: Path, tmp_path: Path) -> None:
    """Whatever is chosen first; limits and sides only leave rows out."""
    own = write(tmp_path / "own.jsonl", [{"prompt": f"question {n}", "completion": f"answer {n}"} for n in range(40)])
    limited = msgspec.structs.replace(own, limit=20)
    prepare(settings(sources=(StdlibSource(stdlib=("bisect",)), limited)), checkpoint, tmp_path, silent, lambda e: None)
    for name in ("train.jsonl", "held_out.jsonl"):
        numbers = [int(r.name.split()[1]) for r in read_rows(tmp_path / name) if r.source == "own.jsonl"]
        assert numbers == sorted(numbers)
    sources = [row.source for row in read_rows(tmp_path / "train.jsonl")]
    assert sources == sorted(sources, key=lambda source: source == "own.jsonl")
    assert counts(tmp_path)["jsonl own.jsonl"] == {"read": 40, "left out: over the source's limit": 20, "taken": 20}


def test_the_same_python_gives_the_same_bytes_in_another_process_and_folder(checkpoint: Path, tmp_path: Path) -> None:
    prepare(settings(), checkpoint, tmp_path / "here", silent, lambda event: None)
    program = (
        "import sys, msgspec; from pathlib import Path; from amigo_local.data.prepare import prepare;"
        "from amigo_local.domain.recipe import DataSettings; from amigo_local.data.reading import Reading;"
        "settings = msgspec.json.decode(sys.argv[1], type=DataSettings); quiet = lambda event: None;"
        "prepare(settings, Path(sys.argv[2]), Path(sys.argv[3]), lambda: Reading(emit=quiet), quiet)"
    )
    arguments = [msgspec.json.encode(settings()).decode(), str(checkpoint), str(tmp_path / "there")]
    subprocess.run(
        [sys.executable, "-c", program, *arguments], check=True, env={**os.environ, "PYTHONHASHSEED": "7"}, timeout=60
    )
    for name in ("train.jsonl", "held_out.jsonl", "stats.json"):
        assert (tmp_path / "here" / name).read_bytes() == (tmp_path / "there" / name).read_bytes()
        assert str(tmp_path) not in (tmp_path / "here" / name).read_text()
    made = sorted(path.name for path in (tmp_path / "here").iterdir())
    assert made == ["held_out.jsonl", "stats.json", "train.jsonl"]


def test_a_limit_takes_exactly_so_many_from_all_modules(checkpoint: Path, tmp_path: Path) -> None:
    prepare(settings(limit=16, max_length_tokens=4096), checkpoint, tmp_path, silent, lambda event: None)
    rows = read_rows(tmp_path / "train.jsonl") + read_rows(tmp_path / "held_out.jsonl")
    assert len(rows) == 16
    assert {row.module for row in rows} == set(MODULES)
    (counted,) = counts(tmp_path).values()
    assert counted["taken"] == 16 and counted["left out: over the source's limit"] > 16


def test_within_a_limit_a_long_sample_makes_room_for_the_next(checkpoint: Path, tmp_path: Path) -> None:
    given = [{"prompt": f"question {n}?", "completion": "word " * (200 if n % 2 else 2) + str(n)} for n in range(60)]
    source = msgspec.structs.replace(write(tmp_path / "own.jsonl", given), limit=25)
    prepare(settings(sources=(source,), max_length_tokens=200), checkpoint, tmp_path, silent, lambda event: None)
    numbers = [int(row.completion.split()[-1]) for row in read_rows(tmp_path / "train.jsonl")]
    numbers += [int(row.completion.split()[-1]) for row in read_rows(tmp_path / "held_out.jsonl")]
    assert len(numbers) == 25 and not any(number % 2 for number in numbers)
    (counted,) = counts(tmp_path).values()
    assert counted["left out: longer than 200 tokens"] + counted["left out: over the source's limit"] == 35
    assert counted["left out: longer than 200 tokens"] >= 15


def test_long_samples_are_left_out_and_counted(checkpoint: Path, tmp_path: Path) -> None:
    prepare(settings(max_length_tokens=300), checkpoint, tmp_path, silent, lambda event: None)
    rows = read_rows(tmp_path / "train.jsonl") + read_rows(tmp_path / "held_out.jsonl")
    assert max(len(row.input_ids) for row in rows) <= 300
    (counted,) = counts(tmp_path).values()
    assert {"left out: longer than 300 tokens", "taken"} <= set(counted)


def test_an_evaluation_prompt_is_kept_out_of_training(checkpoint: Path, tmp_path: Path) -> None:
    prepare(settings(), checkpoint, tmp_path / "all", silent, lambda event: None)
    rows = read_rows(tmp_path / "all" / "train.jsonl")
    leaked = next(row for row in rows if len(row.prompt.split()) > 18)
    prepare(settings(), checkpoint, tmp_path / "clean", silent, lambda event: None, [leaked.prompt])
    assert leaked.prompt not in {row.prompt for row in read_rows(tmp_path / "clean" / "train.jsonl")}
    (counted,) = counts(tmp_path / "clean").values()
    assert counted["left out: overlaps an evaluation"] >= 1


def test_a_row_that_two_sources_give_is_taken_from_the_first(checkpoint: Path, tmp_path: Path) -> None:
    given: list[dict[str, object]] = [{"prompt": f"question {n}", "completion": f"answer {n}"} for n in range(40)]
    first = write(tmp_path / "first.jsonl", given)
    second = write(
        tmp_path / "second.jsonl", [{"prompt": "question  7", "completion": " answer 7"}, *given[:3], given[3]]
    )
    mixed = (StdlibSource(stdlib=("bisect",)), first, second, msgspec.structs.replace(second, limit=2))
    prepare(settings(sources=mixed), checkpoint, tmp_path, silent, lambda event: None)
    counted = counts(tmp_path)
    assert counted["jsonl first.jsonl"] == {"read": 40, "taken": 40}
    assert counted["jsonl second.jsonl"] == {"read": 5, "left out: exact duplicate": 5, "taken": 0}
    assert counted["jsonl second.jsonl (2)"] == {"read": 5, "left out: exact duplicate": 5, "taken": 0}
    held_out = [row for row in read_rows(tmp_path / "held_out.jsonl") if row.source == "first.jsonl"]
    assert 4 <= len(held_out) <= 20  # without a module each row is judged by itself


def test_what_was_left_out_is_counted_at_every_step_and_its_first_places_are_named(
    checkpoint: Path, tmp_path: Path
) -> None:
    given: list[dict[str, object]] = [{"prompt": f"question {n}", "completion": f"answer {n}"} for n in range(20)]
    given[3]["completion"] = "```python\nx = = 1\n```"
    given[5]["completion"] = "write to someone@gmail.com"
    given[8]["completion"] = "write to someone.else@gmail.com"
    given[9] = given[0]
    given[12]["completion"] = "token " * 300
    source = write(tmp_path / "own.jsonl", given)
    prepare(settings(sources=(source,), max_length_tokens=200), checkpoint, tmp_path, silent, lambda event: None)
    stats = json.loads((tmp_path / "stats.json").read_bytes())
    assert [tuple(row[1:]) for row in stats["counts"]] == [
        ("read", 20),
        ("left out: code doesn't parse", 1),
        ("left out: holds an e-mail address", 2),
        ("left out: exact duplicate", 1),
        ("left out: longer than 200 tokens", 1),
        ("taken", 15),
    ]
    assert stats["first_left_out"] == {
        "jsonl own.jsonl": {
            "code doesn't parse": ["own.jsonl:4"],
            "holds an e-mail address": ["own.jsonl:6", "own.jsonl:9"],
            "exact duplicate": ["own.jsonl:10"],
            "longer than 200 tokens": ["own.jsonl:13"],
        }
    }


def test_near_duplicates_are_left_out_where_the_recipe_says_so(checkpoint: Path, tmp_path: Path) -> None:
    text = " ".join(f"word{n}" for n in range(80))
    given: list[dict[str, object]] = [{"prompt": f"question {n}", "completion": f"answer {n}"} for n in range(8)]
    given += [{"prompt": "the same?", "completion": text}, {"prompt": "the same?", "completion": text.upper()}]
    source = write(tmp_path / "own.jsonl", given)
    prepare(settings(sources=(source,)), checkpoint, tmp_path / "all", silent, lambda event: None)
    assert counts(tmp_path / "all")["jsonl own.jsonl"] == {"read": 10, "taken": 10}
    strict = settings(sources=(source,), near_duplicates=0.8)
    prepare(strict, checkpoint, tmp_path / "few", silent, lambda event: None)
    assert counts(tmp_path / "few")["jsonl own.jsonl"] == {"read": 10, "left out: near duplicate": 1, "taken": 9}
    assert text.upper() not in {row.completion for row in read_rows(tmp_path / "few" / "train.jsonl")}
    places = json.loads((tmp_path / "few" / "stats.json").read_bytes())["first_left_out"]
    assert places == {"jsonl own.jsonl": {"near duplicate": ["own.jsonl:10"]}}


@pytest.mark.parametrize(
    ("completion", "changes", "reason", "hint"),
    [
        ("```python\nx = = 1\n```", {}, "code doesn't parse", "look at the answers"),
        ("word " * 100, {"max_length_tokens": 50}, "longer than 50 tokens", "raise data.max_length_tokens"),
        ("write to someone@gmail.com", {}, "holds an e-mail address", "take addresses out"),
        ("fine", {"max_characters": 10}, "longer than 10 characters", "raise data.max_characters"),
    ],
)
def test_an_empty_set_names_the_filter_that_ate_it(
    completion: str, changes: dict[str, object], reason: str, hint: str, checkpoint: Path, tmp_path: Path
) -> None:
    given: list[dict[str, object]] = [{"prompt": f"question {n}", "completion": completion} for n in range(12)]
    source = write(tmp_path / "own.jsonl", given)
    with pytest.raises(InputError, match="nothing is left to train on") as error:
        prepare(settings(sources=(source,), **changes), checkpoint, tmp_path, silent, lambda event: None)
    assert error.value.message.endswith(f"all 12 of jsonl own.jsonl were left out: 12 by {reason!r}")
    assert hint in error.value.hint
    assert not (tmp_path / "train.jsonl").exists()


def test_no_source_is_a_plain_error(checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="names no data source"):
        prepare(settings(sources=()), checkpoint, tmp_path, silent, lambda event: None)


def test_a_template_that_never_leaves_a_place_for_the_mask_is_named(
    checkpoint_with: Callable[..., Path], tmp_path: Path
) -> None:
    from amigo_local.data.rendering import BoundaryMoved
    from tests.data.test_data_rendering import FRESH_ANSWER

    with pytest.raises(BoundaryMoved, match="so the loss mask can't be placed"):
        prepare(settings(), checkpoint_with(FRESH_ANSWER), tmp_path, silent, lambda event: None)


def test_a_cancelled_set_is_gone_on_with(checkpoint: Path, tmp_path: Path) -> None:
    def cancel(event: AnyEvent) -> None:
        raise Cancelled

    with pytest.raises(Cancelled):
        prepare(settings(), checkpoint, tmp_path / "out", silent, cancel)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["building"]
    prepare(settings(), checkpoint, tmp_path / "out", silent, lambda event: None)
    prepare(settings(), checkpoint, tmp_path / "whole", silent, lambda event: None)
    for name in ("train.jsonl", "held_out.jsonl", "stats.json"):
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    assert not (tmp_path / "out" / "building").exists()


def test_importing_the_room_costs_nothing() -> None:
    program = (
        "import sys, amigo_local.data, amigo_local.data.prepare, amigo_local.evaluation;"
        "heavy = {'torch', 'transformers', 'numpy', 'datasets'} & set(sys.modules); assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)
