from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

from amigo_local.data.pair import Pair
from amigo_local.data.reading import Reading
from amigo_local.data.sources import package, repo, stdlib
from amigo_local.domain.data_source import PackageSource, RepoSource, StdlibSource

SHAPES = '''
import math

UNIT = 2

class Circle:
    """A round thing."""
    def __init__(self, radius):
        self.radius = radius

class Square:
    side = 1

def area_of(circle):
    """Give the area of a circle.

    In square units.
    """
    radius = circle.radius
    squared = radius * radius
    half = squared / 2
    return half * math.pi * 2

def unused(x):
    return x
'''
REPORT = '''
import json
from . import shapes
from .shapes import Circle, area_of as area
from ..settings import DIGITS

WIDTH = 40

def pad(text):
    return text.ljust(WIDTH)

def other(text):
    return text

def summary(radii):
    """Return one line of JSON for each circle of the given radii."""
    circles = [Circle(radius * shapes.UNIT) for radius in radii]
    return [pad(json.dumps(round(area(circle), DIGITS))) for circle in circles]

def alone(text):
    """Return the padded text twice, with a line between."""
    padded = pad(text)
    return padded + other(padded)

def needs_nothing(text):
    """Return the text without the blanks around it."""
    stripped = text.strip()
    return stripped
'''


def put(root: Path, path: str, text: str) -> None:
    (root / path).parent.mkdir(parents=True, exist_ok=True)
    (root / path).write_text(text, encoding="utf-8")


@pytest.fixture
def project(tmp_path: Path) -> Path:
    root = tmp_path / "mine"
    put(root, "src/app/draw/__init__.py", "")
    put(root, "src/app/draw/shapes.py", SHAPES)
    put(root, "src/app/draw/report.py", REPORT)
    put(root, "src/app/settings.py", "DIGITS = 3\nNAME = 'x'\n")
    return root


def contexts(root: Path) -> tuple[list[Pair], Reading]:
    reading = Reading(emit=lambda event: None)
    return list(repo.read(RepoSource(repo=str(root), take=("context",)), reading)), reading


def blocks_of(prompt: str) -> dict[str, str]:
    return dict(re.findall(r"`([^`\n]+\.py)`:\n```python\n(.*?)\n```", prompt, re.DOTALL))


def test_the_request_shows_what_the_answer_needs_from_each_file(project: Path) -> None:
    pairs, reading = contexts(project)
    assert [pair.name for pair in pairs] == ["src.app.draw.report.summary"]
    pair = pairs[0]
    assert pair.check is not None
    assert (pair.check.skill, pair.check.entry_point) == ("context", "summary")
    assert pair.check.names == ("Circle", "DIGITS", "UNIT", "pad")  # area_of goes by another name here
    blocks = blocks_of(pair.prompt)
    assert list(blocks) == ["src/app/draw/shapes.py", "src/app/settings.py", "src/app/draw/report.py"]
    shapes = blocks["src/app/draw/shapes.py"]
    assert "UNIT = 2" in shapes and "def __init__(self, radius):" in shapes  # a short class is whole
    assert (
        'def area_of(circle):\n    """Give the area of a circle."""\n    ...' in shapes
    )  # of a long function the outline
    assert "DIGITS = 3" in blocks["src/app/settings.py"]
    own = blocks["src/app/draw/report.py"]
    for line in ("import json", "from .shapes import Circle, area_of as area", "from ..settings import DIGITS"):
        assert line in own.split("\n")
    assert "return text.ljust(WIDTH)" in own
    assert "def summary" not in "".join(blocks.values())
    assert pair.completion.startswith("```python\ndef summary(radii):\n    circles = [")
    assert pair.completion.count("def ") == 1
    assert reading.skipped["uses its own file alone"] == 1  # `alone`, since its group has one that crosses files
    assert reading.skipped["uses fewer than 2 definitions of its tree"] >= 1


def test_what_isnt_needed_stands_among_what_is(project: Path) -> None:
    pair = contexts(project)[0][0]
    assert pair.check is not None
    defined = set()
    for text in blocks_of(pair.prompt).values():
        for node in ast.parse(text).body:
            if isinstance(node, ast.FunctionDef | ast.ClassDef):
                defined.add(node.name)
            elif isinstance(node, ast.Assign):
                defined.add(ast.unparse(node.targets[0]))
    assert set(pair.check.names) < defined
    others = {"Square", "unused", "NAME", "WIDTH", "other", "alone", "needs_nothing"}
    assert defined - set(pair.check.names) - {"area_of"} <= others


def test_a_file_alone_serves_where_nothing_crosses_files(tmp_path: Path) -> None:
    put(
        tmp_path,
        "one.py",
        "A = 1\nB = 2\ndef f(x):\n    'Return the x with all the letters.'\n    y = A + B\n    return y + x\n",
    )
    pairs, _ = contexts(tmp_path)
    assert [pair.check.names for pair in pairs if pair.check] == [("A", "B")]


def test_re_exports_are_followed_to_the_definition(tmp_path: Path) -> None:
    put(tmp_path, "pkg/__init__.py", "from .inner import helper, LIMIT\n")
    put(tmp_path, "pkg/inner.py", "LIMIT = 3\ndef helper(x):\n    return x\n")
    put(
        tmp_path,
        "use.py",
        "import pkg\nfrom pkg import helper\ndef f(x):\n    'Return the helped thing, cut short.'\n"
        "    y = helper(x)\n    return y[:pkg.LIMIT]\n",
    )
    pairs, _ = contexts(tmp_path)
    assert [pair.check.names for pair in pairs if pair.check] == [("LIMIT", "helper")]
    assert list(blocks_of(pairs[0].prompt)) == ["pkg/inner.py", "use.py"]


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ("y = A + B + missing", "needs names from elsewhere"),
        ("global A\n    y = A = B", "keeps state in its module"),
        ("y = A + B + MAYBE", "needs names from elsewhere"),
        ("y = A", "uses fewer than 2 definitions of its tree"),
    ],
)
def test_what_cannot_be_shown_is_refused(tmp_path: Path, body: str, reason: str) -> None:
    text = "A = 1\nB = 2\nif A:\n    MAYBE = 1\n"
    put(tmp_path, "one.py", f"{text}def f(x):\n    'Return the x with all the letters.'\n    {body}\n    return y\n")
    put(
        tmp_path,
        "two.py",
        "A = 1\nB = 2\ndef g(x):\n    'Return the x with all the numbers.'\n    y = A * B\n    return y + x\n",
    )
    pairs, reading = contexts(tmp_path)
    assert [pair.name for pair in pairs] == ["two.g"]
    assert reading.places[reason] == ["one.f"]


def test_decorators_of_the_tree_are_not_asked_for(tmp_path: Path) -> None:
    put(tmp_path, "deco.py", "def marked(f):\n    return f\n")
    text = "from deco import marked\nA = 1\nB = 2\n@marked\n"
    text += "def f(x):\n    'Return the x with all.'\n    y = A + B\n    return y\n"
    put(tmp_path, "one.py", text)
    pairs, _ = contexts(tmp_path)
    assert pairs[0].completion.startswith("```python\ndef f(x):")
    assert [pair.check.names for pair in pairs if pair.check] == [("A", "B")]


@pytest.fixture(scope="module")
def of_numpy() -> list[Pair]:
    return list(package.read(PackageSource(package="numpy", take="context"), Reading(emit=lambda event: None)))


def test_numpy_gives_contexts_of_several_files(of_numpy: list[Pair]) -> None:
    several = [pair for pair in of_numpy if len(blocks_of(pair.prompt)) >= 2]
    assert len(several) >= 60
    assert len({pair.module for pair in several}) >= 5


def test_each_supplied_name_is_shown_and_used_by_the_answer(of_numpy: list[Pair]) -> None:
    """Independent of how they were found: by the text of the blocks and the names in the answer's tree."""
    for pair in of_numpy:
        assert pair.check is not None
        answer = ast.parse(pair.completion.removeprefix("```python\n").removesuffix("\n```"))
        used = {node.id for node in ast.walk(answer) if isinstance(node, ast.Name)}
        used |= {node.attr for node in ast.walk(answer) if isinstance(node, ast.Attribute)}
        shown = "\n".join(blocks_of(pair.prompt).values())
        aliases = set(re.findall(r"import (\w+) as \w+", shown))
        assert len(pair.check.names) >= 2
        for name in pair.check.names:
            assert re.search(rf"(def|class) {name}\b|^{name}\b.*=|\b{name} =", shown, re.MULTILINE), (pair.name, name)
            assert name in used or name in aliases, (pair.name, name)
        for text in blocks_of(pair.prompt).values():
            ast.parse(text)


def test_some_modules_of_the_library_still_see_all_of_it() -> None:
    source = StdlibSource(stdlib=("email", "zipfile", "asyncio"), take="context")
    pairs = list(stdlib.read(source, Reading(emit=lambda event: None)))
    assert {pair.module for pair in pairs} <= {"email", "zipfile", "asyncio"} and len(pairs) >= 10
    assert all(pair.license == "PSF-2.0" for pair in pairs)


def test_hash_randomisation_changes_no_context(project: Path) -> None:
    program = (
        "import sys, msgspec; from amigo_local.data.sources import repo; from amigo_local.data.reading import Reading;"
        "from amigo_local.domain.data_source import RepoSource;"
        "source = RepoSource(repo=sys.argv[1], take=('context',));"
        "sys.stdout.buffer.write(msgspec.json.encode(list(repo.read(source, Reading(emit=lambda event: None)))))"
    )
    outputs = {
        subprocess.run(
            [sys.executable, "-c", program, str(project)], capture_output=True, check=True, env={"PYTHONHASHSEED": seed}
        ).stdout
        for seed in ("1", "2", "3")
    }
    assert len(outputs) == 1
