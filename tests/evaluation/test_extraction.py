from __future__ import annotations

import ast
import time

import pytest

from amigo_local.evaluation.extraction import extract_code

PROMPT = 'from typing import List\n\n\ndef add(a: int, b: int) -> int:\n    """ Sum of two.\n    """\n'
FUNCTION = "def add(a, b):\n    return a + b"

ANSWERS = {
    "fenced": f"Sure!\n\n```python\n{FUNCTION}\n```\nIt adds.",
    "fenced without a language": f"```\n{FUNCTION}\n```",
    "fenced, never closed": f"```python\n{FUNCTION}\n",
    "fenced, indented in a list": "1. So:\n\n   ```python\n   def add(a, b):\n       return a + b\n   ```\n",
    "the second block defines it": f"First install it:\n```sh\npip install add\n```\nthen\n```python\n{FUNCTION}\n```",
    "bare": FUNCTION,
    "bare, prose around": f"Here is the function:\n\n{FUNCTION}\n\nThis adds the two numbers. Isn't it nice?",
    "bare, import and helper": f"import math\n\ndef one():\n    return 0\n\n{FUNCTION} + one()\n\nThat's all.",
    "torn by the token limit": f"```python\n{FUNCTION}\n\nprint(add(1, 2))\nprint(add(3,",
    "torn in a string": f'```python\n{FUNCTION}\n\nexample = """\nmore',
    "torn in a second function": f"```python\n{FUNCTION}\n\ndef test():\n    assert (",
    "with a main part": f'```python\n{FUNCTION}\n\nif __name__ == "__main__":\n    input()\n```',
    "annotated": "```python\ndef add(a: List[int], b) -> int:\n    return a + b\n```",
    "body only": "    return a + b\n",
    "body only, indentation lost": "return a + b",
    "body only, first line stripped": "if a:\n        return a + b\n    return b",
    "body only, fenced": "```python\n    c = a\n    return c + b\n```",
    "a constant first": f"```python\nZERO = 0\n\n{FUNCTION} + ZERO\n```",
}


@pytest.mark.parametrize("kind", ANSWERS)
def test_the_function_is_found_and_works(kind: str) -> None:
    scope: dict[str, object] = {"__name__": "answer"}
    exec("from typing import List", scope)
    exec(compile(extract_code(ANSWERS[kind], "add", PROMPT), kind, "exec"), scope)
    assert scope["add"](2, 3) == 5  # type: ignore[operator]


def test_the_first_definition_is_taken_when_there_are_several() -> None:
    answer = f"```python\n{FUNCTION}\n```\nor shorter\n```python\nadd = lambda a, b: 0\ndef add(a, b): return 0\n```"
    assert extract_code(answer, "add", PROMPT).strip() == FUNCTION


def test_what_defines_nothing_stays_invalid_or_wrong_rather_than_raising() -> None:
    for text in ("", "I can't help with that.", "```python\ndef other(): pass\n```", "\0", "```", "(" * 5000):
        code = extract_code(text, "add", PROMPT)
        assert code.startswith(PROMPT) or "def add" not in code


def test_a_method_of_that_name_is_not_the_function() -> None:
    code = extract_code(
        "```python\nclass Solution:\n    def add(self, a, b):\n        return a + b\n```", "add", PROMPT
    )
    assert code.startswith(PROMPT)


def test_a_long_broken_answer_is_judged_quickly() -> None:
    lines = [f"def f{number}(x):\n    return (x" for number in range(600)]
    started = time.monotonic()
    extract_code("\n".join([*lines, FUNCTION]), "add", PROMPT)
    assert time.monotonic() - started < 5


def test_extracted_code_of_a_fence_is_exactly_what_stands_in_it() -> None:
    code = extract_code(ANSWERS["fenced"], "add", PROMPT)
    assert ast.dump(ast.parse(code)) == ast.dump(ast.parse(FUNCTION))
