from __future__ import annotations

from pathlib import Path

import pytest

from amigo_local.data.pair import Pair
from amigo_local.data.sources.jsonl import read_jsonl
from amigo_local.domain.errors import InputError


def write(tmp_path: Path, *lines: str) -> Path:
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def test_declared_columns_become_pairs_and_unusable_rows_are_counted(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        '{"ask": "a?", "say": "b", "module": "m", "license": "MIT", "extra": [1]}',
        "",
        '{"ask": " c? ", "say": "d\\n"}',
        '{"ask": 3, "say": "d"}',
        '{"ask": "x"}',
        '{"ask": "  ", "say": "d"}',
    )
    mined = read_jsonl(path, "ask", "say", lambda event: None)
    assert mined.pairs == (
        Pair(prompt="a?", completion="b", source="rows.jsonl", module="m", name="line 1", license="MIT"),
        Pair(prompt="c?", completion="d", source="rows.jsonl", name="line 3"),
    )
    assert mined.left_out == {"column isn't text": 2, "empty prompt or completion": 1}


def test_a_missing_column_is_named_with_those_found_and_the_nearest(tmp_path: Path) -> None:
    path = write(tmp_path, '{"instruction": "a", "response": "b"}')
    with pytest.raises(InputError, match=r"no column 'instructions' \(columns found: instruction, response\)") as error:
        read_jsonl(path, "instructions", "response", lambda event: None)
    assert error.value.hint.startswith("did you mean 'instruction'?")


def test_a_file_that_maps_no_row_is_refused_rather_than_trained_on(tmp_path: Path) -> None:
    path = write(tmp_path, '{"prompt": null, "completion": ["b"]}', '{"other": 1}')
    with pytest.raises(InputError, match=r"no row has text .*columns found: prompt, completion, other"):
        read_jsonl(path, "prompt", "completion", lambda event: None)
    with pytest.raises(InputError, match="columns found: none"):
        read_jsonl(write(tmp_path, ""), "prompt", "completion", lambda event: None)


def test_a_missing_file_a_directory_and_a_bad_line_are_plain_errors(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such file"):
        read_jsonl(tmp_path / "none.jsonl", "prompt", "completion", lambda event: None)
    with pytest.raises(InputError, match="can't be read"):
        read_jsonl(tmp_path, "prompt", "completion", lambda event: None)
    path = write(tmp_path, '{"prompt": "a", "completion": "b"}', '{"prompt": "a", "compl')
    with pytest.raises(InputError, match=r"rows.jsonl:2: not one JSON object"):
        read_jsonl(path, "prompt", "completion", lambda event: None)
    with pytest.raises(InputError, match=r"rows.jsonl:1: not one JSON object"):
        read_jsonl(write(tmp_path, "[1]"), "prompt", "completion", lambda event: None)
