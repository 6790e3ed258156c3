"""Evaluation names: the sets that models are judged on, told by their names, their problems' ids and their columns."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence

# What the hub's copies and their files are called; `-`, `_` and `.` come and go, so they are taken out first.
_NAMES = (
    (re.compile(r"humanevalpack"), "HumanEvalPack"),
    (re.compile(r"humanevalx"), "HumanEval-X"),
    (re.compile(r"humaneval"), "HumanEval"),
    (re.compile(r"mbpp"), "MBPP"),
    (re.compile(r"evalplus"), "EvalPlus"),
    (re.compile(r"gsm8k|gsmplus|gsmsymbolic"), "GSM8K"),
    (re.compile(r"livecodebench"), "LiveCodeBench"),
    (re.compile(r"bigcodebench"), "BigCodeBench"),
    (re.compile(r"multiple$|(?:^|/)multiple/"), "MultiPL-E"),
    (re.compile(r"ds1000"), "DS-1000"),
    (re.compile(r"cruxeval"), "CRUXEval"),
    (re.compile(r"classeval"), "ClassEval"),
    (re.compile(r"canitedit"), "CanItEdit"),
    (re.compile(r"swebench"), "SWE-bench"),
    (re.compile(r"repobench"), "RepoBench"),
    (re.compile(r"crosscodeeval"), "CrossCodeEval"),
    (re.compile(r"polyglotbenchmark"), "Aider polyglot"),
    (re.compile(r"math500"), "MATH-500"),
    (re.compile(r"(?:^|/)aime20?2\d|(?:^|/)aime2\d"), "AIME"),
    (re.compile(r"(?:^|/)mmlu"), "MMLU"),
    (re.compile(r"(?:^|/)gpqa"), "GPQA"),
    (re.compile(r"(?:^|/)ifeval"), "IFEval"),
)
_IDS = (
    (re.compile(r"HumanEval[/_]\d+(?:_\w+)?"), "HumanEval"),
    (re.compile(r"(?:Python|CPP|Go|Java|JavaScript|Rust)/\d+"), "HumanEvalPack"),
    (re.compile(r"(?:Mbpp/|mbpp_)\d+(?:_\w+)?"), "MBPP"),
    (re.compile(r"BigCodeBench/\d+"), "BigCodeBench"),
    (re.compile(r"ClassEval_\d+"), "ClassEval"),
)
_ID_COLUMNS = ("task_id", "name", "id", "problem_id", "question_id")
# Where ids are plain numbers, columns that only this set has beside them.
_COLUMNS = (
    (frozenset({"task_id", "test_list"}), "MBPP"),
    (frozenset({"question_id", "public_test_cases", "private_test_cases"}), "LiveCodeBench"),
    (frozenset({"instance_id", "FAIL_TO_PASS"}), "SWE-bench"),
)
# A docstring isn't among them: `Return maximum element in the list` is anybody's.
_PROSE = frozenset(
    {"prompt", "question", "text", "instruction", "query", "problem", "problem_statement", "question_content"}
    | {"instruct_prompt"}
)


def is_evaluation_set(name: str) -> str:
    """What the set with this name on the hub (`openai/openai_humaneval`) or of this file is called; empty: none."""
    bare = re.sub(r"[-_. ]", "", name.lower())
    return next((called for pattern, called in _NAMES if pattern.search(bare)), "")


def holds_evaluation_ids(rows: Sequence[Mapping[str, object]]) -> str:
    """Which set a table's first rows are of, whatever its file is called; empty: none that is known."""
    return next((called for row in rows for called in _signs(row)), "")


def _signs(row: Mapping[str, object]) -> Iterator[str]:
    for column in _ID_COLUMNS:
        value = row.get(column)
        if isinstance(value, str):
            yield from (called for pattern, called in _IDS if pattern.fullmatch(value))
    yield from (called for columns, called in _COLUMNS if columns <= row.keys())


def is_prose(column: str) -> bool:
    """Whether a column of an evaluation holds its request in words. Code as short as that is anybody's."""
    return column.lower() in _PROSE
