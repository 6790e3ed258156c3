"""Mines (docstring, function) pairs from the running Python's own standard library."""

from __future__ import annotations

import ast
import difflib
import re
import sys
import sysconfig
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from amigo_local.data.mined import Mined
from amigo_local.data.pair import Pair
from amigo_local.data.phrasing import clean_paragraph, request
from amigo_local.data.sources.standalone import ModuleSource, Refused, body_key, renamed
from amigo_local.domain.errors import InputError
from amigo_local.domain.events import Emit, Progress

LICENSE = "PSF-2.0"
PARAGRAPH_CHARACTERS = (20, 300)
CODE_LINES = (2, 60)
LONGEST_SIGNATURE = 100

# Tests, bundled programs, generated tables and jokes: code, but not the code one asks a model for.
LEFT_OUT = frozenset(
    {"test", "tests", "idlelib", "lib2to3", "turtledemo", "turtle", "ensurepip", "site-packages", "dist-packages"}
    | {"pydoc_data", "antigravity", "this", "__phello__", "__pycache__", "_pydecimal", "_pyio"}
)
_INSIDE_TALK = re.compile(
    r"\b(internal|private|helper|undocumented|deprecated|obsolete|do not use|don't use|backwards?.compatib\w*|"
    r"for testing|this (module|class|package|method)|the (module|class|caller)|self|PEP \d+|above|below|see )\b"
    r"|^(same as|like|similar to|equivalent to|used (by|for|to|in))\b|[:@]param|>>>|->|\bXXX\b",
    re.IGNORECASE,
)


def mine_stdlib(modules: Literal["all"] | Sequence[str], emit: Emit, folder: Path | None = None) -> Mined:
    """Pairs in file order, the same for the same Python; `modules` are top-level names or "all".

    Only module-level functions that make a correct answer by themselves are taken: what they need
    of their module (imports, constants, helpers) comes along, and methods are left out. `folder`
    is the library to read (default: this Python's). Raises InputError for a module that isn't there.
    """
    root = folder or Path(sysconfig.get_paths()["stdlib"])
    files = _module_files(root)
    available = sorted({_top(file.relative_to(root)) for file in files})
    if modules != "all":
        for name in modules:
            if name not in available:
                close = difflib.get_close_matches(name, available, 1)
                hint = f"did you mean {close[0]}?" if close else f"one of: {', '.join(available[:12])} …"
                raise InputError(f"{name!r} is no minable module of Python's standard library", hint)
        files = [file for file in files if _top(file.relative_to(root)) in set(modules)]
    pairs: list[Pair] = []
    reasons: Counter[str] = Counter()
    seen: set[str] = set()
    for index, file in enumerate(files):
        if index % 25 == 0:
            emit(Progress("reading the standard library", index, len(files), "files"))
        try:
            source = ModuleSource(file.read_text(encoding="utf-8"))
        except (SyntaxError, UnicodeDecodeError, ValueError):
            reasons["file isn't readable Python"] += 1
            continue
        reasons["method of a class"] += source.method_count
        for function in source.functions:
            try:
                pairs.append(_pair(source, function, file.relative_to(root), seen))
            except Refused as refusal:
                reasons[str(refusal)] += 1
    emit(Progress("reading the standard library", len(files), len(files), "files"))
    return Mined(pairs=tuple(pairs), left_out={reason: n for reason, n in reasons.most_common() if n})


def _pair(source: ModuleSource, function: ast.FunctionDef | ast.AsyncFunctionDef, path: Path, seen: set[str]) -> Pair:
    """Raises Refused with the first rule that the function breaks."""
    docstring = ast.get_docstring(function)
    if function.name.startswith("__"):
        raise Refused("dunder")
    if not docstring:
        raise Refused("no docstring")
    if len(function.body) < 2 or _is_stub(function.body[1:]):
        raise Refused("stub")
    paragraph = clean_paragraph(docstring)
    if not PARAGRAPH_CHARACTERS[0] <= len(paragraph) <= PARAGRAPH_CHARACTERS[1]:
        raise Refused("first paragraph too short or too long")
    if _INSIDE_TALK.search(paragraph) or paragraph.startswith(f"{function.name}("):
        raise Refused("docstring speaks to insiders")
    name = function.name.lstrip("_")
    signature = f"{name}({ast.unparse(function.args)})"
    if len(signature) > LONGEST_SIGNATURE:
        raise Refused("signature too long")
    qualified = ".".join([*path.with_suffix("").parts, function.name]).replace(".__init__.", ".")
    prompt = request(qualified, signature, paragraph)
    if prompt is None:
        raise Refused("docstring opens with no verb")
    code = source.code_of(function)
    body_lines = (function.end_lineno or function.lineno) - function.body[1].lineno + 1
    if body_lines < CODE_LINES[0] or code.count("\n") > CODE_LINES[1]:
        raise Refused("fewer than 2 or more than 60 lines")
    if name != function.name:
        public = renamed(code, function.name, name)
        if public is None:
            raise Refused("private name that can't be made public")
        code = public
    key = body_key(function)
    if key in seen:
        raise Refused("same body as another function")
    seen.add(key)
    completion = f"```python\n{code}\n```"
    return Pair(
        prompt=prompt, completion=completion, source="stdlib", module=_top(path), name=qualified, license=LICENSE
    )


def _is_stub(body: Sequence[ast.stmt]) -> bool:
    statement = body[0]
    if len(body) == 1 and isinstance(statement, ast.Raise):
        return True
    return all(isinstance(item, ast.Pass) or (isinstance(item, ast.Expr) and _is_ellipsis(item)) for item in body)


def _is_ellipsis(statement: ast.Expr) -> bool:
    return isinstance(statement.value, ast.Constant) and statement.value.value is ...


def _module_files(root: Path) -> list[Path]:
    files = []
    for file in sorted(root.rglob("*.py"), key=lambda path: path.relative_to(root).as_posix()):
        relative = file.relative_to(root)
        if _top(relative) in sys.stdlib_module_names and not LEFT_OUT & {*relative.parts, _top(relative)}:
            files.append(file)
    return files


def _top(relative: Path) -> str:
    return relative.parts[0].removesuffix(".py")
