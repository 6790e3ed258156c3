"""What the code of an answer is and uses: compared without comments and layout, and by the names in its syntax tree."""

from __future__ import annotations

import ast
import re
import warnings
from collections.abc import Collection

from amigo_local.data.answer_blocks import answer_blocks
from amigo_local.data.pair import Pair
from amigo_local.domain.name_use import names_used

_COMMENT = re.compile(r"(?:#|//).*$", re.MULTILINE)


def code_of(text: str) -> str:
    """The code of a reference answer: its blocks together, or the text itself."""
    blocks = answer_blocks(text)
    return "\n\n".join(block.code for block in blocks) if blocks else text


def parsed(code: str) -> ast.Module | None:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # an invalid escape is no fault of ours
            return ast.parse(code)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None


def same_code(one: str, other: str) -> bool:
    """Equal but for layout, comments and docstrings."""
    return _core(one) == _core(other)


def _core(code: str) -> str:
    tree = parsed(code)
    if tree is None:
        return " ".join(_COMMENT.sub("", code).split())
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef | ast.Module):
            first = node.body[0] if node.body else None
            if (
                isinstance(first, ast.Expr)
                and isinstance(first.value, ast.Constant)
                and isinstance(first.value.value, str)
            ):
                node.body = node.body[1:]
    return ast.dump(tree)


def used_names(code: str, supplied: Collection[str]) -> frozenset[str] | None:
    """Which of the supplied names the code uses, as evaluation counts it. None: it doesn't parse, or is empty."""
    return frozenset(names_used(code, supplied)) if code.strip() and parsed(code) else None


def first_function(code: str) -> str:
    """Name of the first function at the top; empty where there is none."""
    return next(iter(_functions(code)), "")


def asked_function(problem: Pair) -> str:
    """Name of the function that a problem asks for; empty where it asks for something else."""
    return (problem.check.entry_point if problem.check else "") or first_function(code_of(problem.completion))


def defines(code: str, name: str) -> bool:
    """Whether the code has that function at its top."""
    return name in _functions(code)


def _functions(code: str) -> list[str]:
    tree = parsed(code)
    return [
        node.name for node in (tree.body if tree else []) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    ]
