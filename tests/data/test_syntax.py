from __future__ import annotations

import ast
import importlib.util
import warnings
from pathlib import Path

import pytest

from amigo_local.data.code.languages import language_of
from amigo_local.data.syntax import Block, fenced_blocks, language_name, parses, valid_syntax

needs_grammars = pytest.mark.skipif(
    importlib.util.find_spec("tree_sitter") is None, reason="grammars are missing: pip install 'amigo-local[data]'"
)


@pytest.mark.parametrize(
    "code",
    [
        "x = 1",
        "x = '\\d'",
        "return 1",  # an excerpt: CPython's parser takes it, its compiler doesn't
        "nonlocal x",
        "await f()",
        "def f():\n    global x\n    x = 1",
        "def f(x):\n    global x",
        "def f(x, x): pass",
        "f(a=1, a=2)",
        "print 'unclosed",
        "def f(:",
        "if x:\nprint()",
        "(" * 300,
        "-" * 100_000 + "1",
        "a\0b",
        "\ud800",
        "",
        "from __future__ import braces",
    ],
)
def test_python_is_judged_as_by_ast(code: str) -> None:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            ast.parse(code)
        expected = True
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        expected = False
    assert parses(code, "python") is expected


def test_code_is_not_run_and_nothing_is_warned_of(tmp_path: Path) -> None:
    mark = tmp_path / "ran"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert parses(f"open({str(mark)!r}, 'w')\n'\\d' is 1", "py") is True
        assert valid_syntax([f"```python\nopen({str(mark)!r}, 'w'); '\\d' is 1\n```"]) == [True]
    assert not mark.exists()


@needs_grammars
@pytest.mark.parametrize(
    ("language", "right", "wrong"),
    [
        ("javascript", "const add = (a, b) => { return a + b; };", "const add = (a, b => { return a + b; };"),
        ("jsx", "const A = () => <b>{x}</b>;", "const A = () => <b>{x};"),
        ("typescript", "function f(a: number): string { return `${a}`; }", "function f(a: number) string { }"),
        ("tsx", "const A = (p: P) => <b>{p.x}</b>;", "const A = (p: P) => <b>{p.x};"),
        ("java", "public int add(int a, int b) { return a + b; }", "public int add(int a, int b) { return a + ; }"),
        ("go", "func Add(a, b int) int { return a + b }", "func Add(a, b int) int { return a + }"),
        ("rust", "fn add(a: i32) -> i32 { a + 1 }", "fn add(a: i32) -> { a + 1 }"),
        ("C++", "template <class T> T add(T a) { return a + 1; }", "template <class T> T add(T a) { return a + ; }"),
        ("c", "static int add(int a) { return a + 1; }", "static int add(int a) { return a + 1; "),
    ],
)
def test_other_languages_are_judged_by_their_grammars(language: str, right: str, wrong: str) -> None:
    assert parses(right, language) is True
    assert parses(wrong, language) is False
    assert valid_syntax([f"```{language}\n{right}\n```", f"```{language}\n{wrong}\n```"]) == [True, False]


@needs_grammars
def test_what_a_macro_may_stand_for_is_not_judged() -> None:
    assert parses("int f(void) NO_RETURN { }}", "c") is None
    assert parses("#define X(\nint f( {", "cpp") is None
    assert valid_syntax(["```c\nint f(void) NO_RETURN { }}\n```"]) == [True]


def test_a_language_without_a_grammar_is_not_judged() -> None:
    assert parses("x := ][", "cobol") is None
    assert parses("x := ][", "") is None
    assert valid_syntax(["```\n(\n```", "```text\n(\n```", "no code at all", ""]) == [True] * 4


def test_every_block_of_an_answer_counts() -> None:
    assert valid_syntax(
        [
            "Text.\n```python\nx = 1\n```\nand\n```py\ndef f(:\n```",
            "```python\nprint 'unclosed fence'",
            "```python\nx = 1",
            "```python\n(\n```",
            "here: ```python\n(\n```",
        ]
    ) == [False, False, True, False, False]


@pytest.mark.parametrize(
    ("text", "blocks"),
    [
        ("a\n```python\nx\n```\nb\n```js\ny\n```", [("python", "x\n"), ("javascript", "y\n")]),
        ("```python title=a.py\nx\n```", [("python", "x\n")]),
        ("```{python}\nx\n```", [("python", "x\n")]),
        ("````md\n```python\nx\n```\n````", [("md", "```python\nx\n```\n")]),
        ("```python\ns = '```'\nt = 1 # ``` x\n```\n", [("python", "s = '```'\nt = 1 # ``` x\n")]),
        ("1. So:\n   ```py\n   if x:\n       y\n   ```\n", [("python", "if x:\n    y\n")]),
        ("> ```py\n> x\n> ```\n", [("python", "x\n")]),
        ("```py\nx", [("python", "x")]),
        ("```py\nx```", [("python", "x")]),
        ("```py", [("python", "")]),
        ("inline ```x``` only", []),
        ("inline ```x```\nand\n```py\ny\n```", [("python", "y\n")]),
        ("Here: ```py\ny\n```", [("python", "y\n")]),
    ],
)
def test_blocks_are_found_as_markdown_has_them(text: str, blocks: list[tuple[str, str]]) -> None:
    assert list(fenced_blocks(text)) == [Block(*block) for block in blocks]


def test_a_language_has_one_name_whatever_a_set_or_a_file_calls_it() -> None:
    for called in ("C#", "cs", "csharp", language_of("a.cs")):
        assert language_name(called) == "csharp"
    for called in ("C++", "cc", "cpp", language_of("a.cpp")):
        assert language_name(called) == "cpp"
