from __future__ import annotations

import gzip
import json
import os
import tracemalloc
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from amigo_local.data.pair import Pair
from amigo_local.data.reading import Reading
from amigo_local.data.source_files import file_of
from amigo_local.data.tables import rows as rows_module
from amigo_local.data.tables.remote_bytes import open_remote
from amigo_local.data.tables.rows import first_rows, rows_of
from amigo_local.data.tables.table import Table, kind_of, tables_on_disk
from amigo_local.domain.data_source import DataSource, JsonlSource, JsonSource, ParquetSource
from amigo_local.domain.errors import InputError


def read(source: DataSource) -> tuple[list[Pair], Reading]:
    reading = Reading(emit=lambda event: None)
    return list(file_of(source).read(source, reading)), reading


ROWS = [{"prompt": f"ask {n}", "completion": f"say\n {n} é"} for n in range(1, 6)]


def test_the_three_formats_give_the_same_pairs(tmp_path: Path) -> None:
    (tmp_path / "rows.json").write_text(json.dumps(ROWS, indent=1), encoding="utf-8")
    (tmp_path / "rows.jsonl").write_text("\ufeff" + "\r\n".join(map(json.dumps, ROWS)), encoding="utf-8")
    (tmp_path / "lines.json").write_text("\n".join(map(json.dumps, ROWS)), encoding="utf-8")
    (tmp_path / "rows.json.gz").write_bytes(gzip.compress((tmp_path / "rows.json").read_bytes()))
    pq.write_table(pa.Table.from_pylist(ROWS), tmp_path / "rows.parquet")
    wanted = [(row["prompt"], row["completion"]) for row in ROWS]
    for source in (
        JsonSource(json=str(tmp_path / "rows.json")),
        JsonSource(json=str(tmp_path / "lines.json")),
        JsonSource(json=str(tmp_path / "rows.json.gz")),
        JsonlSource(jsonl=str(tmp_path / "rows.jsonl")),
        ParquetSource(parquet=str(tmp_path / "rows.parquet")),
    ):
        pairs, _ = read(source)
        assert [(pair.prompt, pair.completion) for pair in pairs] == wanted
        facts = file_of(source).look(source, Reading(emit=lambda event: None))
        assert facts.reachable and facts.columns == ("prompt", "completion")


def test_items_of_a_json_list_are_named_by_the_line_that_they_begin_in(tmp_path: Path) -> None:
    path = tmp_path / "rows.json"
    path.write_text('[\n {"prompt": "a",\n  "completion": "b"},\n 7, {"prompt": 1, "completion": "b"},\n\n[1]]')
    pairs, reading = read(JsonSource(json=str(path)))
    assert [pair.name for pair in pairs] == ["line 2"]
    assert reading.places == {
        "not a JSON object": ["rows.json:4", "rows.json:6"],
        "column isn't text": ["rows.json:4"],
    }


def test_a_json_list_that_breaks_off_names_the_line(tmp_path: Path) -> None:
    path = tmp_path / "rows.json"
    path.write_text(json.dumps(ROWS, indent=0)[:-30])
    line = path.read_text().count("\n") + 1
    with pytest.raises(InputError, match=rf"rows\.json:{line}: no JSON list") as raised:
        read(JsonSource(json=str(path)))
    assert "one object a line" in raised.value.hint


def test_a_json_list_too_large_to_hold_is_refused_with_the_way_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "rows.json"
    path.write_text(json.dumps(ROWS * 1000))
    monkeypatch.setattr(rows_module, "LARGEST_JSON_BYTES", 50_000)
    monkeypatch.setattr(rows_module, "_HEAD_BYTES", 1000)
    with pytest.raises(InputError, match="would have to be held whole") as raised:
        read(JsonSource(json=str(path)))
    assert "jq -c" in raised.value.hint


def test_only_the_columns_that_are_looked_at_leave_a_parquet_file(tmp_path: Path) -> None:
    path = tmp_path / "rows.parquet"
    pq.write_table(pa.Table.from_pylist([row | {"embedding": [0.0] * 50} for row in ROWS]), path)
    [table] = tables_on_disk(str(path), "parquet")
    assert next(rows_of(table, {"prompt", "absent"})) == (1, {"prompt": "ask 1"})
    source = ParquetSource(parquet=str(path))
    assert file_of(source).look(source, Reading(emit=lambda event: None)).rows == 5
    with pytest.raises(InputError, match=r"no column 'ask' \(columns found: prompt, completion, embedding\)"):
        read(ParquetSource(parquet=str(path), prompt="ask"))


def test_a_parquet_row_that_isnt_utf8_is_left_out_alone(tmp_path: Path) -> None:
    path = tmp_path / "rows.parquet"
    texts = pa.array([b"a", b"\xff\xfe", b"c"], pa.binary()).view(pa.string())
    pq.write_table(pa.table({"prompt": texts, "completion": ["x", "y", "z"]}), path)
    pairs, reading = read(ParquetSource(parquet=str(path)))
    assert [pair.name for pair in pairs] == ["row 1", "row 3"]
    assert reading.places == {"not UTF-8": ["rows.parquet row 2"]}


def test_a_damaged_parquet_file_is_a_plain_error(tmp_path: Path) -> None:
    path = tmp_path / "rows.parquet"
    pq.write_table(pa.Table.from_pylist(ROWS), path)
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(InputError, match="isn't a whole Parquet file"):
        read(ParquetSource(parquet=str(path)))


def test_memory_doesnt_grow_with_the_file(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    with path.open("w") as file:
        for number in range(20_000):
            file.write(json.dumps({"prompt": f"{number} " + "x" * 1000, "completion": "y" * 1000}) + "\n")
    source = JsonlSource(jsonl=str(path))
    tracemalloc.start()
    count = sum(1 for _ in file_of(source).read(source, Reading(emit=lambda event: None)))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert count == 20_000 and peak < 3_000_000


def test_a_line_that_never_ends_is_one_bad_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rows_module, "_LONGEST_LINE", 1000)
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join([json.dumps(ROWS[0]), "x" * 5500, json.dumps(ROWS[1])]))
    pairs, reading = read(JsonlSource(jsonl=str(path)))
    assert [pair.name for pair in pairs] == ["line 1", "line 3"] and reading.skipped == {"a line over 64 MB": 1}


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root reads everything")
def test_a_file_that_may_not_be_read_is_a_plain_error(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps(ROWS[0]))
    path.chmod(0)
    with pytest.raises(InputError, match="can't be read"):
        read(JsonlSource(jsonl=str(path)))


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("data/a.JSONL", "jsonl"),
        ("a.jsonl.gz", "jsonl"),
        ("a.ndjson", "jsonl"),
        ("a.json", "json"),
        ("a-0.parquet", "parquet"),
        ("a.parquet.gz", None),
        ("load.py", None),
        ("a.csv", None),
    ],
)
def test_files_are_told_by_their_endings(path: str, kind: str | None) -> None:
    assert kind_of(path) == kind


@pytest.mark.parametrize("name", ["rows.parquet", "rows.jsonl", "rows.json"])
def test_a_look_at_a_file_elsewhere_brings_only_pieces_of_it(tmp_path: Path, name: str) -> None:
    many = [{"prompt": f"{n}", "completion": os.urandom(200).hex()} for n in range(8000)]
    path = tmp_path / name
    if name.endswith("parquet"):
        pq.write_table(pa.Table.from_pylist(many), path, row_group_size=500)
    elif name.endswith("jsonl"):
        path.write_text("\n".join(map(json.dumps, many)))
    else:
        path.write_text(json.dumps(many))
    data, brought = path.read_bytes(), 0

    def part(start: int, stop: int) -> bytes:
        nonlocal brought
        brought += stop - start
        return data[start:stop]

    kind = kind_of(name)
    assert kind is not None
    table = Table(name, kind, len(data), lambda: open_remote(len(data), part))
    rows, bad = first_rows(table, 20)
    assert rows == many[:20] and bad is None
    assert brought < 1_600_000 < len(data)
