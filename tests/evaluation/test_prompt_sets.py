from __future__ import annotations

import re
from pathlib import Path

import pytest

from amigo_local.domain.errors import InputError
from amigo_local.evaluation.prompt_sets import read_prompts


def written(tmp_path: Path, name: str, content: str | bytes) -> Path:
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


@pytest.mark.parametrize("name", ["set.txt", "set.md", "SET.TXT"])
@pytest.mark.parametrize(
    ("content", "prompts"),
    [
        ("one\n\n  two \nthree", ("one", "two", "three")),
        ("one\nof two lines\n---\n\ntwo\n\nof three\n--- \n\n---\n", ("one\nof two lines", "two\n\nof three")),
        ("a\r\n---\r\nb\r\nc\r\n", ("a", "b\nc")),
        ("\ufeffbom\n----\n-- -\n", ("bom", "----", "-- -")),
        ("grüße 東京", ("grüße 東京",)),
    ],
)
def test_a_text_file_has_prompts_between_rulers_or_one_a_line(
    tmp_path: Path, name: str, content: str, prompts: tuple[str, ...]
) -> None:
    assert read_prompts(written(tmp_path, name, content)) == prompts


def test_json_lines_are_read_as_evaluate_reads_them(tmp_path: Path) -> None:
    rows = '{"prompt": "a", "check": 3}\n{"other": 1, "prompt": "b\\n---\\nc"}\n'
    assert read_prompts(written(tmp_path, "p.jsonl", rows)) == ("a", "b\n---\nc")
    written(tmp_path, "held_out.jsonl", '{"prompt": "held"}\n')
    assert read_prompts(tmp_path) == ("held",)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("p.txt", b"", r"p\.txt holds no prompts"),
        ("p.md", b"\n---\n \n", r"p\.md holds no prompts"),
        ("p.jsonl", b"", r"p\.jsonl holds no prompts"),
        ("p.txt", b"fine\n\xff\xfe\x00", r"p\.txt:2: no UTF-8 text"),
        ("p.txt", b"fine\n\n\x00ELF", r"p\.txt:3: a binary file"),
        ("p.jsonl", b'{"prompt": "a"}\n{"text": "b"}\n', r"p\.jsonl:2: no JSON object with a `prompt`"),
        ("p.jsonl", b'{"prompt": "a"}\n{"prompt": 3}\n', r"p\.jsonl:2: no JSON object with a `prompt`"),
        ("p.jsonl", b'{"prompt": "a"}\n{"prompt": " "}\n', r"p\.jsonl:2: the prompt is empty"),
        ("p.jsonl", b"\x89PNG\r\n", r"p\.jsonl:1: no JSON object"),
    ],
)
def test_what_is_refused_and_where(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    with pytest.raises(InputError, match=message) as refused:
        read_prompts(written(tmp_path, name, content))
    assert refused.value.hint


@pytest.mark.parametrize("name", ["absent.txt", "absent.jsonl", "folder.txt"])
def test_a_file_that_isnt_there(tmp_path: Path, name: str) -> None:
    (tmp_path / "folder.txt").mkdir()
    with pytest.raises(InputError, match=re.escape(name)) as refused:
        read_prompts(tmp_path / name)
    assert refused.value.hint
