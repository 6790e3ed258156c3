"""Pairs of a docstring's request and the function that answers it alone."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator, Sequence

import msgspec

from amigo_local.data.code.code_tree import CodeFile, CodeTree
from amigo_local.data.code.standalone import Function, ModuleSource, Refused, body_key, renamed
from amigo_local.data.pair import Pair
from amigo_local.data.phrasing import clean_paragraph, request
from amigo_local.data.reading import Reading

PARAGRAPH_CHARACTERS = (20, 300)
CODE_LINES = (2, 60)
LONGEST_SIGNATURE = 100
_INSIDE_TALK = re.compile(
    r"\b(internal|private|helper|undocumented|deprecated|obsolete|do not use|don't use|backwards?.compatib\w*|"
    r"for testing|this (module|class|package|method)|the (module|class|caller)|self|PEP \d+|above|below|see )\b"
    r"|^(same as|like|similar to|equivalent to|used (by|for|to|in))\b|[:@]param|>>>|->|\bXXX\b",
    re.IGNORECASE,
)


class Asked(msgspec.Struct, frozen=True):
    """What a function's docstring asks for."""

    name: str
    """Without leading underscores."""
    signature: str
    paragraph: str


def docstring_pairs(tree: CodeTree, reading: Reading) -> Iterator[Pair]:
    """In file order, the same for the same files; what is no answer by itself is counted.

    Only module-level functions are taken: what they need of their module (imports, constants, helpers) comes along,
    and methods are left out.
    """
    seen: set[str] = set()
    for file, source in tree.sources(reading):
        if source.method_count:
            reading.skipped["method of a class"] += source.method_count
            reading.rows += source.method_count
        for function in source.functions:
            reading.rows += 1
            try:
                yield _pair(source, function, file, tree, seen)
            except Refused as refusal:
                reading.skip(str(refusal), file.qualified(function.name))


def asked_of(function: Function) -> Asked:
    """Raises Refused with the first rule that the docstring breaks."""
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
    return Asked(name, signature_of(function, name), paragraph)


def signature_of(function: Function, name: str) -> str:
    """`name(a, b=1) -> str`; what it returns is left out where the line gets too long. Raises Refused when it is."""
    signature = f"{name}({ast.unparse(function.args)})"
    if len(signature) > LONGEST_SIGNATURE:
        raise Refused("signature too long")
    returns = f" -> {ast.unparse(function.returns)}" if function.returns else ""
    return signature + (returns if len(signature + returns) <= LONGEST_SIGNATURE else "")


def refuse_size(function: Function, code: str) -> None:
    """Raises Refused for what is too little to learn from, or too much."""
    body_lines = (function.end_lineno or function.lineno) - function.body[1].lineno + 1
    if body_lines < CODE_LINES[0] or code.count("\n") > CODE_LINES[1]:
        raise Refused("fewer than 2 or more than 60 lines")


def made_public(code: str, old: str, new: str) -> str:
    """Raises Refused when it can't be renamed."""
    if old == new:
        return code
    public = renamed(code, old, new)
    if public is None:
        raise Refused("private name that can't be made public")
    return public


def _pair(source: ModuleSource, function: Function, file: CodeFile, tree: CodeTree, seen: set[str]) -> Pair:
    asked = asked_of(function)
    qualified = file.qualified(function.name)
    prompt = request(qualified, asked.signature, asked.paragraph)
    if prompt is None:
        raise Refused("docstring opens with no verb")
    code = source.code_of(function)
    refuse_size(function, code)
    code = made_public(code, function.name, asked.name)
    key = body_key(function)
    if key in seen:
        raise Refused("same body as another function")
    seen.add(key)
    return Pair(
        prompt=prompt,
        completion=f"```python\n{code}\n```",
        source=tree.label,
        module=file.group,
        name=qualified,
        license=tree.license,
        language="python",
    )


def _is_stub(body: Sequence[ast.stmt]) -> bool:
    statement = body[0]
    if len(body) == 1 and isinstance(statement, ast.Raise):
        return True
    return all(isinstance(item, ast.Pass) or (isinstance(item, ast.Expr) and _is_ellipsis(item)) for item in body)


def _is_ellipsis(statement: ast.Expr) -> bool:
    return isinstance(statement.value, ast.Constant) and statement.value.value is ...
