from __future__ import annotations

import ast
import json
from pathlib import Path
from typing import Any

import pytest

from amigo_local.data.answer_blocks import answer_blocks
from amigo_local.data.pair import Pair
from amigo_local.data.reading import Reading
from amigo_local.data.sources import jsonl
from amigo_local.data.tables.commit_message import BOT, MERGE, NOTHING, REVERT, Wish, wish_of
from amigo_local.data.tables.python_change import change_of
from amigo_local.domain.answer_check import AnswerCheck
from amigo_local.domain.data_source import JsonlSource
from amigo_local.domain.errors import InputError

OLD = """import os
from math import sqrt

LIMIT = 5


def size(path):
    return os.path.getsize(path)


def norm(values):
    return sqrt(sum(v * v for v in values))
"""
NEW = OLD.replace("    return sqrt(", "    values = values[:LIMIT]\n    return sqrt(")


def commit(**more: Any) -> dict[str, Any]:
    row = {
        "commit": "c0ffee",
        "old_file": "lib/numbers.py",
        "new_file": "lib/numbers.py",
        "old_contents": OLD,
        "new_contents": NEW,
        "subject": "Limit the values that norm looks at",
        "message": "Limit the values that norm looks at\n\nLong lists took minutes.\n\nSigned-off-by: A <a@b.org>\n",
        "lang": "Python",
        "license": "mit",
        "repos": "ann/numbers,bob/numbers",
    }
    return row | more


def read(tmp_path: Path, mapping: Any, *rows: dict[str, Any]) -> tuple[list[Pair], Reading]:
    path = tmp_path / "data.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    reading = Reading(emit=lambda event: None)
    return list(jsonl.read(JsonlSource(jsonl=str(path), mapping=mapping), reading)), reading


def test_a_commit_becomes_a_request_with_the_old_file_and_the_whole_new_one(tmp_path: Path) -> None:
    [pair], _ = read(tmp_path, "commits", commit())
    assert "Limit the values that norm looks at." in pair.prompt and "Long lists took minutes." in pair.prompt
    assert "a@b.org" not in pair.prompt and "lib/numbers.py" in pair.prompt
    [given], [answered] = answer_blocks(pair.prompt), answer_blocks(pair.completion)
    assert (given.code + "\n", answered.code + "\n") == (OLD, NEW) and given.language == "python"
    assert pair.completion.startswith("```python\n")
    assert (pair.license, pair.language, pair.module, pair.name) == ("mit", "python", "ann/numbers", "line 1")


def test_code_that_holds_fences_is_fenced_longer(tmp_path: Path) -> None:
    text = "# Title\n\n```\ncode\n```\n"
    rows = commit(old_file="a.md", new_file="a.md", lang="Markdown", old_contents=text, new_contents=text + "\nMore.\n")
    [pair], _ = read(tmp_path, "commits", rows)
    [block] = answer_blocks(pair.completion)
    assert block.code == text + "\nMore." and block.language == "markdown"


def test_a_new_file_is_asked_for_by_its_name(tmp_path: Path) -> None:
    [pair], _ = read(tmp_path, "commits", commit(old_contents="", subject="Add a norm of vectors", message=""))
    assert not answer_blocks(pair.prompt) and "`lib/numbers.py`" in pair.prompt
    assert "Add a norm of vectors." in pair.prompt


def test_requests_are_put_in_different_words_and_always_the_same(tmp_path: Path) -> None:
    rows = [commit(subject=f"Limit the values to {n}", message="") for n in range(40)]
    pairs, _ = read(tmp_path, "commits", *rows)
    assert len({pair.prompt.replace(f"to {n}.", "to N.") for n, pair in enumerate(pairs)}) == 5
    assert [pair.prompt for pair in read(tmp_path, "commits", *rows)[0]] == [pair.prompt for pair in pairs]


def test_what_teaches_nothing_is_left_out_with_its_reason(tmp_path: Path) -> None:
    rows = [
        commit(),
        commit(new_contents=" \n"),
        commit(new_contents=OLD.replace("\n\n", "\n\n\n")),
        commit(new_contents="a\0b"),
        commit(subject="Update README.md", message=""),
        commit(subject="Merge branch 'master' of github.com:a/b", message=""),
        commit(new_contents=3),
    ]
    del rows[-1]["old_contents"]
    pairs, reading = read(tmp_path, "commits", *rows)
    assert len(pairs) == 1
    assert reading.skipped == {
        "file was deleted": 1,
        "only whitespace changed": 1,
        "binary text": 1,
        NOTHING: 1,
        MERGE: 1,
        "no column 'old_contents'": 1,
    }


def test_a_table_of_something_else_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no column 'old_contents'") as raised:
        read(tmp_path, "commits", {"old_content": "a", "new_contents": "b", "subject": "c"})
    assert "did you mean 'old_content'? choose another mapping than commits" in raised.value.hint


@pytest.mark.parametrize(
    ("subject", "becomes"),
    [
        ("Fix crash when the list is empty (#123)", "Fix crash when the list is empty"),
        ("fix(parser): handle empty input", "Handle empty input"),
        (":bug: handle empty input. Fixes #4", "Handle empty input"),
        ("[FIX] account: round taxes by line", "Account: round taxes by line"),
        ("JIRA-42: Allow two owners.", "Allow two owners"),
        ("Use absolute paths", "Use absolute paths"),
    ],
)
def test_a_subject_is_rid_of_references_and_types(subject: str, becomes: str) -> None:
    assert wish_of(subject, "") == Wish(becomes, "")
    assert wish_of("", f"{subject}\n\nChange-Id: I4711\nCo-authored-by: X <x@y.z>\n") == Wish(becomes, "")


@pytest.mark.parametrize(
    ("subject", "reason"),
    [
        ("Update README", NOTHING),
        ("fix typo", NOTHING),
        ("Update utils/names.py", NOTHING),
        ("wip", NOTHING),
        ("", NOTHING),
        ("Fixes #12", NOTHING),
        ("...", NOTHING),
        ("minor fixes and cleanup", NOTHING),
        ("Merge pull request #3 from a/b", MERGE),
        ("Merged in feature/x (pull request #3)", MERGE),
        ('Revert "Use absolute paths"', REVERT),
        ("Bump lodash from 4.17.20 to 4.17.21", BOT),
        ("chore(deps): update dependency x to v2", BOT),
        ("1.4.2", BOT),
        ("Release version 2.0", BOT),
    ],
)
def test_a_message_that_asks_for_nothing_says_why(subject: str, reason: str) -> None:
    assert wish_of(subject, subject) == reason


def test_context_asks_for_the_changed_definition_alone(tmp_path: Path) -> None:
    [pair], _ = read(tmp_path, "context", commit())
    [block] = answer_blocks(pair.completion)
    assert block.code == "def norm(values):\n    values = values[:LIMIT]\n    return sqrt(sum(v * v for v in values))"
    assert pair.check == AnswerCheck(skill="context", entry_point="norm", names=("LIMIT", "sqrt"))
    assert "the changed `norm`" in pair.prompt and answer_blocks(pair.prompt)[0].code + "\n" == OLD


def test_context_leaves_out_what_one_definition_cant_answer(tmp_path: Path) -> None:
    added = "\n\ndef total(values):\n    return sum(values)\n"
    rows = [
        commit(),
        commit(new_contents=NEW.replace("LIMIT = 5", "LIMIT = 6")),
        commit(new_contents=OLD.replace("def size(path):\n    return os.path.getsize(path)\n\n\n", "")),
        commit(new_contents=OLD + added),
        commit(new_contents=OLD.replace("sum(v", "sum(v ** 2 *")[:-3]),
        commit(lang="Go"),
        commit(old_contents=""),
        commit(new_contents=OLD.replace("LIMIT = 5", "LIMIT = 5  # of them")),
    ]
    pairs, reading = read(tmp_path, "context", *rows)
    assert len(pairs) == 1
    assert reading.skipped == {
        "changed outside of definitions": 2,
        "uses less than 2 names of its file": 1,
        "doesn't parse": 1,
        "not Python": 1,
        "a new file gives no context": 1,
        "no definition changed": 1,
    }


def test_new_imports_come_with_the_definition_and_arent_names_of_the_file() -> None:
    new = OLD.replace("import os\n", "import os\nimport json\n") + (
        "\n\n@staticmethod\ndef save(path, size):\n    json.dump([norm([1]), LIMIT, os.sep, size], path)\n"
    )
    change = change_of(OLD, new)
    assert not isinstance(change, str)
    assert change.code.startswith("import json\n\n\n@staticmethod\ndef save(path, size):")
    assert change.used == ("LIMIT", "norm", "os") and change.added == ("save",)
    assert {node.name for node in ast.walk(ast.parse(change.code)) if isinstance(node, ast.FunctionDef)} == {"save"}
