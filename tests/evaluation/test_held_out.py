"""Held-out requests: how rows are read, and which of them another set trains on."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from amigo_local.domain.errors import InputError
from amigo_local.evaluation.held_out import Request, is_trained, read_requests, trained_prompts


def test_held_out_rows_of_both_kinds_of_set_are_read(tmp_path: Path) -> None:
    single = {"prompt": "a", "completion": "x", "check": {"skill": "context", "names": ["n"]}, "completion_start": 3}
    pair = {"prompt": "b", "chosen": "y", "rejected": "z", "prompt_ids": [1, 2], "check": None, "module": "m"}
    (tmp_path / "held_out.jsonl").write_text("".join(json.dumps(row) + "\n" for row in (single, pair)))
    one, two = read_requests(str(tmp_path))
    assert (one.reference, one.prompt_tokens, one.check and one.check.names) == ("x", 3, ("n",))
    assert (two.reference, two.prompt_tokens, two.check) == ("y", 2, None)
    (tmp_path / "train.jsonl").write_text('{"prompt": "b", "completion": ""}\n')
    marks = trained_prompts([str(tmp_path), str(tmp_path / "held_out.jsonl")])
    assert (is_trained(one, marks), is_trained(two, marks)) == (False, True)


def test_a_module_that_another_set_trains_on_is_trained_whatever_is_asked(tmp_path: Path) -> None:
    rows = [{"prompt": "Write f.", "module": "heapq"}, {"prompt": "Write g.", "module": ""}]
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    marks = trained_prompts([str(tmp_path)])
    asked = [Request(prompt="Mend f.", module=module) for module in ("heapq", "bisect", "")]
    assert [is_trained(request, marks) for request in asked] == [True, False, False]


def test_a_file_of_ones_own_needs_no_more_than_a_prompt(tmp_path: Path) -> None:
    own = tmp_path / "own.jsonl"
    own.write_text('{"prompt": "a", "name": 7, "check": "by hand"}\n{"text": "b"}\n')
    with pytest.raises(InputError, match=r"own.jsonl:2: no JSON object with a `prompt`"):
        read_requests(str(own))
    own.write_text('{"prompt": "a", "name": 7, "check": "by hand"}\n')
    assert read_requests(str(own)) == (Request(prompt="a"),)
    with pytest.raises(InputError, match="there is no prompt file"):
        read_requests(str(tmp_path))
