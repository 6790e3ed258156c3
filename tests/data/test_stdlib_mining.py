from __future__ import annotations

import ast
import builtins
import importlib.util
import re
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Literal

import msgspec
import pytest

from amigo_local.data.code.docstring_pairs import docstring_pairs, signature_of
from amigo_local.data.code.free_names import free_names
from amigo_local.data.code.opened_tree import standard_library
from amigo_local.data.code.standalone import ModuleSource, Refused, joined_imports, renamed
from amigo_local.data.pair import Pair
from amigo_local.data.phrasing import clean_paragraph, described, request, third_person
from amigo_local.data.reading import Reading
from amigo_local.data.sources import stdlib
from amigo_local.domain.data_source import StdlibSource
from amigo_local.domain.errors import InputError
from amigo_local.domain.events import AnyEvent, Progress


class Mined(msgspec.Struct):
    pairs: list[Pair]
    left_out: dict[str, int]


def mine(modules: Literal["all"] | tuple[str, ...] = "all", folder: Path | None = None) -> Mined:
    reading = Reading(emit=lambda event: None)
    if folder is None:
        return Mined(list(stdlib.read(StdlibSource(stdlib=modules), reading)), dict(reading.skipped))
    return Mined(list(docstring_pairs(standard_library(modules, folder), reading)), dict(reading.skipped))


@pytest.fixture(scope="module")
def mined() -> Mined:
    return mine()


def code_of(completion: str) -> str:
    fence = re.fullmatch(r"```python\n(.*)\n```", completion, re.DOTALL)
    assert fence, completion
    return fence[1]


def test_the_standard_library_gives_hundreds_of_pairs_from_many_modules(mined: Mined) -> None:
    assert len(mined.pairs) >= 300
    assert len({pair.module for pair in mined.pairs}) >= 60
    assert {"no docstring", "stub", "dunder", "keeps state in its module"} <= set(mined.left_out)
    assert {(pair.license, pair.language, pair.source) for pair in mined.pairs} == {("PSF-2.0", "python", "stdlib")}


def test_every_mined_answer_compiles_and_can_be_imported_from(mined: Mined) -> None:
    for pair in mined.pairs:
        tree = ast.parse(code_of(pair.completion))
        for node in tree.body:
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or "."] if isinstance(node, ast.ImportFrom) else []
            assert all(importlib.util.find_spec(name) for name in names), pair.name


def test_every_name_in_a_mined_answer_is_bound_in_it(mined: Mined) -> None:
    """Independent of symtable: each loaded name is stored, imported, defined or a parameter in the answer."""
    for pair in mined.pairs:
        bound = set(dir(builtins))
        loaded = set()
        for node in ast.walk(ast.parse(code_of(pair.completion))):
            if isinstance(node, ast.Name):
                (loaded if isinstance(node.ctx, ast.Load) else bound).add(node.id)
            elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                bound.add(node.name)
            elif isinstance(node, ast.arg):
                bound.add(node.arg)
            elif isinstance(node, ast.alias):
                bound.add(node.asname or node.name.split(".")[0])
            elif isinstance(node, ast.ExceptHandler) and node.name:
                bound.add(node.name)
        assert loaded <= bound, (pair.name, loaded - bound)


def test_the_answer_defines_what_the_request_names(mined: Mined) -> None:
    for pair in mined.pairs:
        named = re.search(r"(\w+)\(", pair.prompt.replace("``", ""))
        assert named
        defined = {node.name for node in ast.parse(code_of(pair.completion)).body if hasattr(node, "name")}
        asked = pair.name.rpartition(".")[2].lstrip("_")
        assert asked in defined and f"{asked}(" in pair.prompt


def test_a_mined_function_does_what_the_library_does(mined: Mined) -> None:
    import base64
    import heapq
    import posixpath

    code = {pair.name: code_of(pair.completion) for pair in mined.pairs}

    def run(name: str) -> object:
        scope: dict[str, object] = {}
        exec(compile(code[name], name, "exec"), scope)
        return scope[name.rpartition(".")[2].lstrip("_")]

    assert run("base64.b64decode")(b"aGVsbG8=") == base64.b64decode(b"aGVsbG8=")  # type: ignore[operator]
    for path in ("a/b.tar.gz", ".bashrc", "a.b/c", ""):
        assert run("genericpath._splitext")(path, "/", None, ".") == posixpath.splitext(path)  # type: ignore[operator]
    heap = [1, 3, 2, 7, 9]
    ours = heap.copy()
    assert run("heapq.heappop")(ours) == heapq.heappop(heap) and ours == heap  # type: ignore[operator]


def test_mining_twice_gives_the_same(mined: Mined) -> None:
    modules = ("textwrap", "bisect", "statistics")
    again = mine(modules)
    assert list(again.pairs) == [pair for pair in mined.pairs if pair.module in modules]
    assert again == mine(modules)


def test_hash_randomisation_changes_neither_pairs_nor_counts(mined: Mined) -> None:
    program = (
        "import sys, msgspec; from amigo_local.data.sources import stdlib;"
        "from amigo_local.data.reading import Reading;"
        "from amigo_local.domain.data_source import StdlibSource; reading = Reading(emit=lambda event: None);"
        "pairs = list(stdlib.read(StdlibSource(stdlib='all'), reading));"
        "sys.stdout.buffer.write(msgspec.json.encode({'pairs': pairs, 'left_out': dict(reading.skipped)}))"
    )
    run = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, check=True, env={"PYTHONHASHSEED": "2"}, timeout=100
    )
    assert run.stdout == msgspec.json.encode(mined)


def test_several_phrasings_are_used_and_no_docstring_is_repeated_in_the_function(mined: Mined) -> None:
    openings = {" ".join(pair.prompt.split()[:3]) for pair in mined.pairs}
    assert len(openings) >= 6
    for pair in mined.pairs:
        asked = pair.name.rpartition(".")[2].lstrip("_")
        function = next(n for n in ast.parse(code_of(pair.completion)).body if getattr(n, "name", "") == asked)
        assert isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef)
        assert ast.get_docstring(function) is None


def test_progress_is_reported() -> None:
    events: list[AnyEvent] = []
    list(stdlib.read(StdlibSource(stdlib=("email",)), Reading(emit=events.append)))
    assert isinstance(events[-1], Progress) and events[-1].done == events[-1].total > 20


def test_an_unknown_module_is_refused_with_the_nearest_name() -> None:
    with pytest.raises(InputError, match="textwrp") as error:
        mine(("textwrp",))
    assert error.value.hint == "did you mean textwrap?"


def library(tmp_path: Path, **modules: str) -> Path:
    for name, text in modules.items():
        (tmp_path / f"{name}.py").write_text(textwrap.dedent(text), encoding="utf-8")
    return tmp_path


def test_a_function_brings_the_imports_constants_and_helpers_it_needs_and_no_more(tmp_path: Path) -> None:
    folder = library(
        tmp_path,
        textwrap='''
        import os, re as regex
        import sys
        LIMIT = 3  # why
        OTHER = 4
        def helper(text):
            return text[:LIMIT]
        def unused(text):
            return text
        def _clip(text):
            """Return the text cut short, and stripped.

            More about it.
            """

            # kept comment
            text = regex.sub("a", "b", text)
            return helper(text)
        ''',
    )
    mined = mine("all", folder)
    assert [code_of(pair.completion) for pair in mined.pairs] == [
        textwrap.dedent(
            """\
            import re as regex

            LIMIT = 3  # why


            def helper(text):
                return text[:LIMIT]


            def clip(text):
                # kept comment
                text = regex.sub("a", "b", text)
                return helper(text)"""
        )
    ]
    assert mined.pairs[0].name == "textwrap._clip"
    assert mined.left_out == {"no docstring": 2}


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (
            "_cache = {}\ndef f(x):\n    'Return what the cache holds.'\n    a = 1\n    return _cache[x]",
            "keeps state in its module",
        ),
        (
            "n = 0\ndef f(x):\n    'Return the next number, always.'\n    global n\n    n += 1\n    return n",
            "keeps state in its module",
        ),
        (
            "from . import y\ndef f(x):\n    'Return the why of a thing.'\n    a = y\n    return a",
            "needs a private or relative import",
        ),
        (
            "from _thread import y\ndef f(x):\n    'Return the why of a thing.'\n    a = y\n    return a",
            "needs a private or relative import",
        ),
        (
            "import winreg\ndef f(x):\n    'Return the why of a thing.'\n    a = winreg\n    return a",
            "needs a private or relative import",
        ),
        (
            "try:\n    import y\nexcept OSError:\n    y = 2\n"
            "def f(x):\n    'Return the why of a thing.'\n    a = y\n    return a",
            "needs names from elsewhere",
        ),
        ("def f(x):\n    'Return the why of a thing.'\n    a = unknown\n    return a", "needs names from elsewhere"),
        ("def f(x):\n    'Return the why of a thing.'\n    pass", "stub"),
        ("def f(x):\n    'Return the why of a thing.'\n    raise NotImplementedError", "stub"),
        ("def f(x):\n    'Return the why of a thing.'\n    return x", "fewer than 2 or more than 60 lines"),
        ("def f(x):\n    'Return x.'\n    a = 1\n    return a", "first paragraph too short or too long"),
        ("def f(x):\n    'Private helper for the loader.'\n    a = 1\n    return a", "docstring speaks to insiders"),
        ("def f(x):\n    'JPEG data in JFIF or Exif format'\n    a = 1\n    return a", "docstring opens with no verb"),
        ("def __f(x):\n    'Return the why of a thing.'\n    a = 1\n    return a", "dunder"),
        (
            "class A:\n    def f(self):\n        'Return the why of a thing.'\n        a = 1\n        return a",
            "method of a class",
        ),
        ("def f(:", "file isn't readable Python"),
    ],
)
def test_what_makes_no_answer_is_left_out_and_counted(tmp_path: Path, text: str, reason: str) -> None:
    mined = mine("all", library(tmp_path, queue=text))
    assert mined.pairs == []
    assert mined.left_out == {reason: 1}


def test_the_same_body_under_two_names_is_taken_once(tmp_path: Path) -> None:
    body = "    a = x + 1\n    return a\n"
    one = f"def f(x):\n    'Return the next of a number.'\n{body}"
    two = f"def g(x):\n    'Return one more than that number.'\n{body}"
    mined = mine("all", library(tmp_path, queue=one, sched=two))
    assert [pair.name for pair in mined.pairs] == ["queue.f"]
    assert mined.left_out == {"same body as another function": 1}


def test_tests_and_bundled_programs_are_not_mined(tmp_path: Path) -> None:
    text = "def f(x):\n    'Return the why of a thing.'\n    a = x\n    return a"
    for folder in ("test", "idlelib", "site-packages", "email"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "mod.py").write_text(text + f"  # {folder}")
    assert [pair.name for pair in mine("all", tmp_path).pairs] == ["email.mod.f"]


def test_free_names_follow_python_scoping() -> None:
    source = "def f(a, *b):\n    c = [d for d in a if e]\n"
    source += "    def g():\n        nonlocal c\n        return c, h\n    return len(b), g"
    assert free_names(source) == {"e", "h"}
    assert free_names("class A(B):\n    c = D\n    def f(self):\n        return self.c") == {"B", "D"}


def test_renaming_refuses_what_it_can_not_see_through() -> None:
    assert renamed("def _f(x):\n    return _f(x - 1), x", "_f", "f") == "def f(x):\n    return f(x - 1), x"
    assert renamed("def _f(f):\n    return f", "_f", "f") is None  # the new name is taken
    assert renamed("def _f(x):\n    return x._f", "_f", "f") is None  # an attribute
    assert renamed("def _f(x):\n    return f'{_f(1)}'", "_f", "f") is None  # inside a string
    assert renamed("def _print(x):\n    return print(x)", "_print", "print") is None


def test_a_form_feed_is_no_line_break() -> None:
    source = ModuleSource("import os\n\f\ndef f(x):\n    'Return the why.'\n    a = x\n    return a")
    assert source.code_of(source.functions[0]) == "def f(x):\n    a = x\n    return a"


def test_a_shared_line_with_the_docstring_is_refused() -> None:
    source = ModuleSource("def f(x): 'Return the why.'; return x")
    with pytest.raises(Refused, match="shares a line"):
        source.code_of(source.functions[0])


def test_requests_read_as_a_person_would_write_them() -> None:
    asked = {request(str(number), "f(x)", "Return the sum of x.") for number in range(60)}
    assert "Write a Python function `f(x)` that returns the sum of x." in asked
    assert "How do I return the sum of x in Python? Show me a function `f(x)`." in asked
    assert len(asked) == 7
    assert request("a", "f(x)", "Tries to open x") == request("a", "f(x)", "Try to open x.")
    assert request("a", "f(x)", "The sum of x.") is None
    assert request("a", "f(x)", "Records of a journal, in order.") is None  # things, though `record` is a verb
    assert "Can you write a function `f(x)` in Python that returns the sum of x?" in asked
    two = [str(request(str(number), "f(x)", "Return x: it is what was given.")) for number in range(60)]
    assert not [text for text in two if "How do I" in text]  # too much for a question
    assert {third_person("apply"), third_person("multiply")} == {"applies", "multiplies"}


def test_markup_is_made_plain() -> None:
    text = "Return :func:`~os.path.join` of\n  ``a`` and `b'.\n\nMore."
    assert clean_paragraph(text) == "Return `os.path.join` of `a` and `b`."
    assert clean_paragraph("Remove empty values\nThis ensures it.") == "Remove empty values. This ensures it."
    assert clean_paragraph("Return the\nPython object.") == "Return the Python object."
    assert described("a", "f(x)", "Twice x, as in this example::").endswith("Twice x, as in this example.")


def test_a_function_is_lifted_as_a_person_would_write_it() -> None:
    text = "from math import exp\nimport re\nfrom math import log as ln\n\n\n"
    text += 'def f(x: int) -> str:\n\n    """Say it.\n    """\n\n    return re.sub("a", str(exp(x)), str(ln(x)))\n'
    source = ModuleSource(text)
    code = source.code_of(source.functions[0])
    assert code.startswith("from math import exp, log as ln\nimport re\n\n\ndef f(x: int) -> str:\n    return re.sub")
    assert signature_of(source.functions[0], "f") == "f(x: int) -> str"
    assert joined_imports(["import a", "from b import *", "from b import c", "import a"]) == [
        "import a",
        "from b import *",
        "from b import c",
    ]
