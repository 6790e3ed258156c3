import random

import pytest

from amigo_local.domain.code_start import CodeStart, begins_like_python, find_code

CODE_LINES = [
    "def add(a, b):",
    "    def add(self, a: int = 0) -> dict[str, int]:",
    "def f(): return 1",
    "def first[T](items: list[T]) -> T:",
    "async def fetch(url):",
    "def long(",
    "def long(first=(),",
    "class Stack:",
    "class Stack(list[int]):",
    "class Empty(Exception): pass",
    'class Point: """A point."""',
    "import math",
    "import os.path, sys",
    "import numpy as np  # arrays",
    "from math import sqrt",
    "from . import sibling",
    "from ..pkg.mod import a as b, c",
    "from typing import (",
    "from x import *",
    "@property",
    "@functools.lru_cache(maxsize=None)",
    "#!/usr/bin/env python3",
    "# -*- coding: utf-8 -*-",
    'if __name__ == "__main__":',
]

PROSE_LINES = [
    "import the module first",
    "import math.",
    "class of functions",
    "class of functions:",
    "Class Stack:",
    "def add(a, b) adds two numbers",
    "define a function:",
    "from there import the goods",
    "from the math module",
    "@john thanks for asking",
    "# A heading",
    "#!important",
    "x = 5",
    "return the value",
    "for example:",
    "if you want:",
    "Use `import math` and `def`.",
    "",
]


@pytest.mark.parametrize("line", CODE_LINES)
def test_a_line_that_opens_python_code_is_code(line: str) -> None:
    assert begins_like_python(line)
    found = find_code(f"Here you are.\n{line}\n    pass\n")
    assert found.found_at == len("Here you are.\n") + len(line) - len(line.lstrip())
    assert not found.at_once


@pytest.mark.parametrize("line", PROSE_LINES)
def test_prose_that_resembles_code_is_not(line: str) -> None:
    assert not begins_like_python(line)
    assert find_code(f"{line}\nand so on").found_at is None


@pytest.mark.parametrize(
    ("answer", "found_at", "at_once"),
    [
        ("```python\nx = 1\n```", 0, True),
        ("\n \n```\nx\n```", 3, True),
        ("Sure!\n\n```python\nx = 1\n```", 7, False),
        ("Sure: ```x```", 6, False),
        ("def f():\n    return 1", 0, True),
        ("  def f(): ...", 2, True),
        ("import math", 0, True),  # the last line has no newline
        ("Use `x` and ``y``.", None, False),
        ("", None, False),
        ("First prose\nimport os\n```\n", 12, False),
    ],
)
def test_where_code_begins(answer: str, found_at: int | None, at_once: bool) -> None:
    found = find_code(answer)
    assert (found.found_at, found.at_once) == (found_at, at_once)


def test_the_verdict_does_not_depend_on_how_the_answer_was_cut() -> None:
    randomness = random.Random(0)
    for answer in [
        "Well, here:\n\n```py\nx\n```",
        "\n\nimport re\n\ndef f(a):\n  pass",
        "no code\nat all ``",
        "a\n@b\n",
    ]:
        whole = find_code(answer)
        for _ in range(50):
            start, at = CodeStart(), 0
            while at < len(answer):
                step = randomness.randint(1, 4)
                start.feed(answer[at : at + step])
                at += step
            start.finish()
            assert (start.found_at, start.at_once) == (whole.found_at, whole.at_once)


def test_pieces_before_code_counts_whole_tokens_only() -> None:
    start = CodeStart()
    for piece in ["Sure", ":", "\n", "def", " f", "():", "\n", " pass"]:
        start.feed(piece)
    assert start.found_at == 6
    assert start.pieces_before_code == 3  # `Sure`, `:` and the newline; not the tokens of the def line

    start = CodeStart()
    for piece in ["Go", ":\n``", "`py\n"]:
        start.feed(piece)
    assert start.found_at == 4
    assert start.pieces_before_code == 1  # the piece that holds the fence's first backticks is code


def test_feeding_goes_on_quietly_after_code_was_found() -> None:
    start = CodeStart()
    assert start.feed("```")
    assert start.feed(" more")
    assert (start.found_at, start.pieces_before_code) == (0, 0)


def test_no_code_has_no_count() -> None:
    assert find_code("just words").pieces_before_code is None
