from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from amigo_local.data.answer_blocks import answer_blocks
from amigo_local.data.pair import Pair
from amigo_local.data.reading import Reading
from amigo_local.data.sources import json as json_source
from amigo_local.domain.answer_check import AnswerCheck
from amigo_local.domain.data_source import JsonSource
from amigo_local.domain.errors import InputError

HUB = {
    "slug": "two-sum",
    "question": "Return two indices&nbsp;that <code>sum</code> to target.",
    "examples": ["Input: [1,2], 3\nOutput: [0,1]", "Input: [2,2], 4\nOutput: [0,1]", "Input: [3,1], 4\nOutput: [0,1]"],
    "constraints": "n > 1",
    "language": "python3",
    "category": "syntax error",
    "level": "easy",
    "buggy_code": "\ndef two(a, t)\n    return [0, 1]\n",
    "solution": "def two(a, t):\n    return [0, 1]\n",
    "bug_explanation": " The colon is missing.  Python needs it! It was always so. ",
}
AUTHORS = {
    "slug": "two-sum",
    "description": "Return two indices.",
    "examples": [],
    "oracle_code": HUB["solution"],
    "content": "My approach was a hash map.",
    "buggy_code": HUB["buggy_code"],
    "explanations": "the colon is missing",
}
SEVERAL = {
    "slug": "two-sum",
    "oracle_code": "def two(a, t): ...",
    "buggy_code": HUB["buggy_code"],
    "fixed_code": "\ndef two(a, t):\n    return (0, 1)\n",
    "fixing_exp": "Added the colon.",
    "test_result_bool": True,
}


def read(tmp_path: Path, *rows: dict[str, Any], **source: Any) -> tuple[list[Pair], Reading]:
    path = tmp_path / "bugs.json"
    path.write_text(json.dumps(rows))
    reading = Reading(emit=lambda event: None)
    return list(json_source.read(JsonSource(json=str(path), mapping="bugs", **source), reading)), reading


def test_the_hubs_columns_become_diagnosis_and_fix(tmp_path: Path) -> None:
    [pair], _ = read(tmp_path, HUB)
    assert pair.completion == (
        "The colon is missing. Python needs it!\n\n```python\ndef two(a, t):\n    return [0, 1]\n```"
    )
    assert pair.prompt.startswith("Return two indices that sum to target.\n\nInput: [1,2], 3\nOutput: [0,1]")
    assert "[3,1]" not in pair.prompt
    assert answer_blocks(pair.prompt)[0].code == "def two(a, t)\n    return [0, 1]"
    assert (pair.module, pair.language) == ("two-sum", "python") and pair.check == AnswerCheck(skill="debugging")


def test_the_authors_own_columns_do_too(tmp_path: Path) -> None:
    pairs, _ = read(tmp_path, AUTHORS, SEVERAL, license="Apache-2.0", language="python3")
    assert [pair.completion.partition("\n")[0] for pair in pairs] == ["the colon is missing.", "Added the colon."]
    assert [answer_blocks(pair.completion)[0].code for pair in pairs] == [
        "def two(a, t):\n    return [0, 1]",
        "def two(a, t):\n    return (0, 1)",
    ]
    assert {(pair.license, pair.language, pair.module) for pair in pairs} == {("Apache-2.0", "python", "two-sum")}
    assert "hash map" not in pairs[0].prompt + pairs[0].completion


def test_what_shows_no_bug_is_left_out(tmp_path: Path) -> None:
    rows = [
        HUB,
        HUB | {"buggy_code": HUB["solution"] + "  \n\n"},
        HUB | {"buggy_code": HUB["solution"].replace("    return", "  return")},  # an indentation is a bug
        HUB | {"bug_explanation": "?!"},
        HUB | {"solution": None},
        SEVERAL | {"test_result_bool": False},
    ]
    pairs, reading = read(tmp_path, *rows)
    assert len(pairs) == 2
    assert reading.skipped == {
        "nothing is broken": 1,
        "no diagnosis": 1,
        "no code in one of its columns": 1,
        "its fix failed the problem's tests": 1,
    }


def test_a_missing_column_names_both_spellings(tmp_path: Path) -> None:
    row = {key: value for key, value in HUB.items() if key != "buggy_code"} | {"bugged_code": ""}
    with pytest.raises(InputError, match="no column 'buggy_code'") as raised:
        read(tmp_path, row)
    assert "'bugged_code'" in raised.value.hint


@pytest.mark.slow
def test_the_authors_files_map_by_four_fifths() -> None:
    folder = os.environ.get("AMIGO_EVALUATION_DATA")
    if not folder:
        pytest.skip("AMIGO_EVALUATION_DATA names no folder with debugbench/*.json (github.com/thunlp/DebugBench)")
    source = JsonSource(json=f"{folder}/debugbench/*.json", mapping="bugs", language="python")
    reading = Reading(emit=lambda event: None)
    pairs = list(json_source.read(source, reading))
    assert (len(pairs), reading.rows) == (1135, 1454)
    assert reading.skipped == {"its fix failed the problem's tests": 319}
