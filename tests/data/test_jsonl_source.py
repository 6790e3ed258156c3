from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

from amigo_local.data.pair import Pair
from amigo_local.data.preferences import Preference
from amigo_local.data.reading import Reading
from amigo_local.data.sources import jsonl
from amigo_local.domain.data_source import JsonlSource
from amigo_local.domain.errors import InputError
from amigo_local.domain.events import AnyEvent, Progress


def write(tmp_path: Path, *lines: str, name: str = "rows.jsonl") -> str:
    path = tmp_path / name
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return str(path)


def row(number: int, **more: object) -> str:
    return json.dumps({"prompt": f"ask {number}", "completion": f"say {number}"} | more)


def read(source: JsonlSource) -> tuple[list[Pair], Reading]:
    reading = Reading(emit=lambda event: None)
    return list(jsonl.read(source, reading)), reading


def refused(source: JsonlSource) -> InputError:
    with pytest.raises(InputError) as raised:
        read(source)
    facts = jsonl.look(source, Reading(emit=lambda event: None))
    if facts.problem and not facts.reachable:
        assert facts.problem == raised.value.message  # what is said before is what happens later
    return raised.value


def test_declared_columns_become_pairs_and_unusable_rows_are_counted_and_named(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        '{"ask": "a?", "say": "b", "module": "m", "license": "MIT", "lang": "Python3", "extra": [1]}',
        "",
        '{"ask": " c? ", "say": "d\\n"}',
        '{"ask": 3, "say": "d"}',
        '{"ask": "x"}',
        '{"ask": "  ", "say": "d"}',
    )
    pairs, reading = read(JsonlSource(jsonl=path, prompt="ask", completion="say", license="ISC", language="Go"))
    assert pairs == [
        Pair(
            prompt="a?",
            completion="b",
            source="rows.jsonl",
            module="m",
            name="line 1",
            license="MIT",
            language="python",
        ),
        Pair(prompt="c?", completion="d", source="rows.jsonl", name="line 3", license="ISC", language="go"),
    ]
    assert reading.skipped == {"column isn't text": 1, "no column 'say'": 1, "empty prompt or completion": 1}
    assert reading.places["no column 'say'"] == ["rows.jsonl:5"]
    assert reading.rows == 5


def test_a_corrupt_row_in_the_middle_is_skipped_counted_and_named_by_its_line(tmp_path: Path) -> None:
    lines = [row(n) for n in range(1, 9)]
    lines[2], lines[3], lines[5] = '{"prompt": "cut', "[1, 2]", '{"prompt": "a", "completion": "\\ud800"}'
    path = Path(write(tmp_path, *lines))
    path.write_bytes(path.read_bytes() + b'{"prompt": "\xff", "completion": "x"}\n' + row(10).encode())
    pairs, reading = read(JsonlSource(jsonl=str(path)))
    assert [pair.name for pair in pairs] == [f"line {n}" for n in (1, 2, 5, 7, 8, 10)]
    assert reading.skipped == {"not JSON": 3, "not a JSON object": 1}
    assert reading.places == {
        "not JSON": ["rows.jsonl:3", "rows.jsonl:6", "rows.jsonl:9"],
        "not a JSON object": ["rows.jsonl:4"],
    }


def test_a_missing_column_is_named_with_those_found_and_the_nearest(tmp_path: Path) -> None:
    path = write(tmp_path, '{"instruction": "a", "response": "b"}')
    error = refused(JsonlSource(jsonl=path, prompt="instructions", completion="response"))
    assert error.message == f"{path}: no column 'instructions' (columns found: instruction, response)"
    assert error.hint == "did you mean 'instruction'? name the columns in the source's prompt and completion"
    error = refused(JsonlSource(jsonl=path, prompt="instruction", chosen="response", rejected="worse"))
    assert "no column 'worse'" in error.message and "prompt, chosen and rejected" in error.hint
    error = refused(JsonlSource(jsonl=path, prompt="instruction", completion="response", where={"lang": ("x",)}))
    assert "no column 'lang'" in error.message


def test_a_column_that_only_the_first_row_lacks_isnt_missing(tmp_path: Path) -> None:
    pairs, reading = read(JsonlSource(jsonl=write(tmp_path, '{"prompt": "a"}', row(2))))
    assert [pair.name for pair in pairs] == ["line 2"] and reading.skipped == {"no column 'completion'": 1}


def test_a_column_that_disappears_half_way_is_counted(tmp_path: Path) -> None:
    renamed = [json.dumps({"prompt": "a", "answer": "b"})] * 200
    pairs, reading = read(JsonlSource(jsonl=write(tmp_path, *[row(n) for n in range(100)], *renamed)))
    assert len(pairs) == 100 and reading.skipped == {"no column 'completion'": 200}
    assert reading.places["no column 'completion'"][0] == "rows.jsonl:101"


def test_a_file_that_maps_no_row_is_refused_rather_than_trained_on(tmp_path: Path) -> None:
    path = write(tmp_path, '{"prompt": null, "completion": ["b"]}', '{"other": 1}')
    error = refused(JsonlSource(jsonl=path))
    assert 'none of 2 rows gives a pair: 1 "column isn\'t text"' in error.message
    assert "columns found: prompt, completion, other" in error.message
    assert ": no rows" in refused(JsonlSource(jsonl=write(tmp_path, ""))).message
    error = refused(JsonlSource(jsonl=write(tmp_path, *['{"prompt": "a", "compl'] * 3)))
    assert "not one row can be read (first: rows.jsonl:1: not JSON)" in error.message
    error = refused(JsonlSource(jsonl=write(tmp_path, "[", row(1) + ",", "]")))
    assert "name it as json" in error.hint


def test_a_missing_file_a_folder_and_a_pattern_without_match_say_what_is_there(tmp_path: Path) -> None:
    for name in ("b.jsonl", "a.json"):
        write(tmp_path, row(1), name=name)
    error = refused(JsonlSource(jsonl=str(tmp_path / "none.jsonl")))
    assert "no such file" in error.message and "a.json, b.jsonl" in error.message
    error = refused(JsonlSource(jsonl=str(tmp_path)))
    assert "is a folder (a.json, b.jsonl)" in error.message and "*.jsonl" in error.hint
    error = refused(JsonlSource(jsonl=str(tmp_path / "*.jsonlines")))
    assert f"no file matches ({tmp_path} holds a.json, b.jsonl)" in error.message
    error = refused(JsonlSource(jsonl=str(tmp_path / "no" / "*.jsonl")))
    assert f"there is no folder {tmp_path / 'no'}" in error.message


def test_a_pattern_reads_its_files_in_the_order_of_their_names(tmp_path: Path) -> None:
    for name in ("c.jsonl", "a.jsonl", "b.jsonl"):
        write(tmp_path, row(1, module=name), name=name)
    pairs, _ = read(JsonlSource(jsonl=str(tmp_path / "*.jsonl")))
    assert [(pair.source, pair.name, pair.module) for pair in pairs] == [
        ("*.jsonl", f"{name} line 1", name) for name in ("a.jsonl", "b.jsonl", "c.jsonl")
    ]


def test_a_renamed_column_in_one_of_several_files_names_that_file(tmp_path: Path) -> None:
    write(tmp_path, row(1), name="a.jsonl")
    later = write(tmp_path, '{"prompt": "a", "completions": "b"}', name="b.jsonl")
    error = refused(JsonlSource(jsonl=str(tmp_path / "*.jsonl")))
    assert error.message.startswith(f"{later}: no column 'completion'") and "'completions'" in error.hint


def test_compressed_files_are_read_and_one_that_is_cut_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl.gz"
    whole = gzip.compress("\n".join(row(n, noise=f"{n * 7919:x}") for n in range(2000)).encode())
    path.write_bytes(whole)
    pairs, _ = read(JsonlSource(jsonl=str(path)))
    assert len(pairs) == 2000 and pairs[-1].completion == "say 1999"
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match="isn't a whole gzip file"):
        read(JsonlSource(jsonl=str(path)))
    path.write_text(row(1))
    assert "isn't a whole gzip file" in refused(JsonlSource(jsonl=str(path))).message


def test_only_rows_with_the_values_asked_for_are_read(tmp_path: Path) -> None:
    path = write(tmp_path, *[row(n, kind=["easy", "hard", None, 3, True][n % 5]) for n in range(20)])
    pairs, reading = read(JsonlSource(jsonl=path, where={"kind": ("hard", "3", "true")}))
    assert [pair.name for pair in pairs][:4] == ["line 2", "line 4", "line 5", "line 7"] and len(pairs) == 12
    assert reading.skipped == {"another kind than asked for": 8} and not reading.places
    error = refused(JsonlSource(jsonl=path, where={"kind": ("Hard",)}))
    assert "'hard' (4)" in error.message and error.hint == "correct the source's where"


def test_rows_reads_so_many_from_the_beginning_over_all_files(tmp_path: Path) -> None:
    for name in ("a.jsonl", "b.jsonl", "c.jsonl"):
        write(tmp_path, row(1), "{", row(3), name=name)
    write(tmp_path, '{"unlike": 1}', name="d.jsonl")  # never opened
    pairs, reading = read(JsonlSource(jsonl=str(tmp_path / "*.jsonl"), rows=5))
    assert [pair.name for pair in pairs] == ["a.jsonl line 1", "a.jsonl line 3", "b.jsonl line 1"]
    assert reading.rows == 5


def test_chosen_and_rejected_make_preferences(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        '{"prompt": "a", "good": " b ", "bad": "c", "license": "MIT"}',
        '{"prompt": "a", "good": "b", "bad": 1}',
        '{"prompt": "a", "good": "b", "bad": " "}',
    )
    pairs, reading = read(JsonlSource(jsonl=path, chosen="good", rejected="bad"))
    assert pairs == [
        Preference(prompt="a", completion="b", rejected="c", source="rows.jsonl", name="line 1", license="MIT")
    ]
    assert reading.skipped == {"column isn't text": 1, "empty prompt or completion": 1}


@pytest.mark.parametrize(
    ("extra", "called"),
    [({"task_id": "HumanEval/3"}, "HumanEval"), ({"task_id": "Python/3"}, "HumanEvalPack"), ({"id": "x/3"}, "")],
)
def test_a_file_of_evaluation_problems_is_refused_whatever_its_name(
    tmp_path: Path, extra: dict[str, object], called: str
) -> None:
    source = JsonlSource(jsonl=write(tmp_path, row(1, **extra)))
    if not called:
        assert len(read(source)[0]) == 1
        return
    error = refused(source)
    assert f"is an evaluation set ({called})" in error.message and error.hint


def test_a_look_tells_columns_rows_and_what_becomes_what(tmp_path: Path) -> None:
    path = write(tmp_path, *[row(n, license=["MIT", "ISC"][n % 2]) for n in range(300)])
    facts = jsonl.look(JsonlSource(jsonl=path), Reading(emit=lambda event: None))
    assert facts.reachable and not facts.problem
    assert (facts.rows, facts.size_bytes) == (300, Path(path).stat().st_size)
    assert facts.columns == ("prompt", "completion", "license") and facts.license == "ISC, MIT"
    assert facts.used == "prompt → request, completion → answer"


def test_long_files_tell_how_far_they_are(tmp_path: Path) -> None:
    events: list[AnyEvent] = []
    path = write(tmp_path, *[row(n) for n in range(12_000)])
    list(jsonl.read(JsonlSource(jsonl=path), Reading(emit=events.append)))
    assert [event.done for event in events if isinstance(event, Progress)] == [5000, 10_000, 12_000]
