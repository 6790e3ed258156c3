"""Python change: which top-level definitions differ between two texts of a file, and what they use of it."""

from __future__ import annotations

import ast
import warnings
from typing import NamedTuple

_Definition = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef
_Import = ast.Import | ast.ImportFrom

NOT_PARSED, ELSEWHERE, NONE_CHANGED = "doesn't parse", "changed outside of definitions", "no definition changed"


class PythonChange(NamedTuple):
    code: str
    """New import lines, then the definitions that changed or came, in the file's order."""
    names: tuple[str, ...]
    """Names of the definitions."""
    added: tuple[str, ...]
    """Those of them that the old text lacks."""
    used: tuple[str, ...]
    """Top-level names of the old text that the code uses and doesn't define itself, sorted."""


def change_of(old: str, new: str) -> PythonChange | str:
    """None but additions of imports and changes of definitions; else the reason why it isn't told as such."""
    before, after = _parsed(old), _parsed(new)
    if before is None or after is None:
        return NOT_PARSED
    old_definitions, new_definitions = _definitions(before, old), _definitions(after, new)
    if len(old_definitions) != _count(before) or len(new_definitions) != _count(after):
        return "a name is defined twice"
    if not old_definitions.keys() <= new_definitions.keys() or _rest(before) != _rest(after):
        return ELSEWHERE
    old_imports = {ast.unparse(node) for node in before.body if isinstance(node, _Import)}
    imports = [
        text for node in after.body if isinstance(node, _Import) and (text := ast.unparse(node)) not in old_imports
    ]
    changed = [name for name, text in new_definitions.items() if old_definitions.get(name) != text]
    if not changed:
        return NONE_CHANGED
    parts = ["\n".join(imports)] if imports else []
    code = "\n\n\n".join([*parts, *(new_definitions[name] for name in changed)])
    added = tuple(name for name in changed if name not in old_definitions)
    return PythonChange(code, tuple(changed), added, _used(code, _top_level_names(before)))


def _parsed(text: str) -> ast.Module | None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of old escapes in strings
        try:
            return ast.parse(text)
        except (SyntaxError, ValueError, RecursionError, MemoryError):
            return None


def _count(tree: ast.Module) -> int:
    return sum(isinstance(node, _Definition) for node in tree.body)


def _definitions(tree: ast.Module, text: str) -> dict[str, str]:
    """Name -> source from its first decorator on, without spaces at line ends."""
    lines = text.splitlines() if "\f" not in text and "\v" not in text else text.split("\n")
    found = {}
    for node in tree.body:
        if isinstance(node, _Definition):
            first = min([node.lineno, *(each.lineno for each in node.decorator_list)])
            found[node.name] = "\n".join(line.rstrip() for line in lines[first - 1 : node.end_lineno])
    return found


def _rest(tree: ast.Module) -> list[str]:
    """What stands between definitions, but for imports, whose additions are part of an answer."""
    return [ast.dump(node) for node in tree.body if not isinstance(node, _Definition | _Import)]


def _top_level_names(tree: ast.Module) -> set[str]:
    names: set[str] = set()
    for node in tree.body:
        if isinstance(node, _Definition):
            names.add(node.name)
        elif isinstance(node, _Import):
            names |= {(alias.asname or alias.name).partition(".")[0] for alias in node.names}
        else:
            names |= {
                each.id for each in ast.walk(node) if isinstance(each, ast.Name) and isinstance(each.ctx, ast.Store)
            }
    return names - {"*"}


def _used(code: str, supplied: set[str]) -> tuple[str, ...]:
    tree = ast.parse(code)
    loaded: set[str] = set()
    bound: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Name):
            (loaded if isinstance(node.ctx, ast.Load) else bound).add(node.id)
        elif isinstance(node, ast.arg):
            bound.add(node.arg)
        elif isinstance(node, _Definition):
            bound.add(node.name)
        elif isinstance(node, _Import):
            bound |= {(alias.asname or alias.name).partition(".")[0] for alias in node.names}
    return tuple(sorted((loaded & supplied) - bound))
