"""Lifts a module-level function out of its module together with the little it needs to run alone."""

from __future__ import annotations

import ast
import io
import itertools
import keyword
import re
import tokenize
from collections.abc import Callable, Iterable
from functools import cached_property
from typing import TypeVar, cast

import msgspec

from amigo_local.data.code.free_names import BUILTINS, free_names, rebinds_globals

Function = ast.FunctionDef | ast.AsyncFunctionDef
Definition = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef

# Only there on Windows: code that imports them can't be run where most people would try it.
_WINDOWS_ONLY = frozenset({"msvcrt", "nt", "winreg", "winsound"})
_LINE = 100
T = TypeVar("T")


class Refused(Exception):
    """This function makes no stand-alone answer; the message is the reason, as it is counted."""


class _Binding(msgspec.Struct, frozen=True):
    """One module-level statement that gives a name its value."""

    line: int
    text: str
    is_import: bool
    is_empty: bool = False
    """Bound to an empty container or None: a cache or a registry that others fill."""


class ModuleSource:
    """One parsed module: what its top level binds, and the text of each binding."""

    def __init__(self, text: str) -> None:
        """Raises SyntaxError when `text` isn't Python (of this version)."""
        self._lines = text.split("\n")  # as ast counts them; str.splitlines also breaks at form feeds
        self._bindings: dict[str, list[_Binding]] = {}
        self._tree = ast.parse(text)
        self._has_global = "global" in text
        self._kept: dict[object, object] = {}
        self.statements = self._tree.body
        self.functions = [node for node in self._tree.body if isinstance(node, Function)]
        self.method_count = sum(
            isinstance(item, Function)
            for node in self._tree.body
            if isinstance(node, ast.ClassDef)
            for item in node.body
        )
        for node in self._tree.body:
            self._bind(node)

    @cached_property
    def unsettled(self) -> set[str]:
        """Names that a function rebinds, or that are bound under an `if` or a `try`: they have no one value to copy."""
        names: set[str] = set()
        if self._has_global:
            names = {name for node in ast.walk(self._tree) if isinstance(node, ast.Global) for name in node.names}
        for node in self._tree.body:
            if not isinstance(node, Definition | ast.Import | ast.ImportFrom | ast.Assign | ast.AnnAssign | ast.Expr):
                names |= _names_bound_in(node)
        return names

    def code_of(self, function: Function) -> str:
        """The function without its docstring, after the imports, constants and helpers it needs.

        Raises Refused when it depends on something that can't be copied: state, a private or
        relative import, a name of unknown origin.
        """
        body = self._text(function, without_docstring=ast.get_docstring(function) is not None)
        try:
            if rebinds_globals(body):
                raise Refused("keeps state in its module")
            wanted = sorted(free_names(body))  # sorted: which reason refuses it must not depend on hashing
        except SyntaxError as error:
            raise Refused("doesn't compile alone") from error
        chosen: dict[tuple[int, str], _Binding] = {(function.lineno, ""): _Binding(function.lineno, body, False)}
        seen = {function.name}
        while wanted:
            name = wanted.pop()
            if name in seen:
                continue
            seen.add(name)
            for binding in self._resolve(name):
                if (binding.line, binding.text) not in chosen:
                    chosen[binding.line, binding.text] = binding
                    wanted.extend(sorted(free_names(binding.text)))
        return _join(sorted(chosen.values(), key=lambda binding: (binding.line, binding.text)))

    def closure_of(self, node: Function | ast.ClassDef) -> tuple[str, tuple[str, ...]]:
        """A definition with what it needs of its module but imports, and the names that imports must bind for it.

        Raises Refused as `code_of` does.
        """
        chosen: dict[int, str] = {}
        imported: set[str] = set()
        wanted, seen = [node.name], set()
        while wanted:
            name = wanted.pop()
            if name in seen:
                continue
            seen.add(name)
            found = self._bindings.get(name, [])
            if len(found) != 1 or name in self.unsettled:
                raise Refused("needs names from elsewhere")
            if found[0].is_import:
                imported.add(name)
            elif found[0].line not in chosen:
                if rebinds_globals(found[0].text):
                    raise Refused("keeps state in its module")
                chosen[found[0].line] = found[0].text
                wanted.extend(sorted(free_names(found[0].text)))
        return "\n\n\n".join(chosen[line] for line in sorted(chosen)), tuple(sorted(imported))

    def body_of(self, function: Function, decorated: bool = True) -> str:
        """The function alone, without its docstring. Raises Refused when they share a line."""
        text = self._text(function, without_docstring=True)
        first = min([function.lineno, *(decorator.lineno for decorator in function.decorator_list)])
        return text if decorated else "\n".join(text.split("\n")[function.lineno - first :])

    def text_of(self, node: ast.stmt) -> str:
        """Source lines of a top-level statement, comments included."""
        return self._text(node)

    def kept(self, made: Callable[[ModuleSource], T]) -> T:
        """`made` of this module, made once."""
        if made not in self._kept:
            self._kept[made] = made(self)
        return cast(T, self._kept[made])

    def _resolve(self, name: str) -> list[_Binding]:
        found = self._bindings.get(name, [])
        if not found or name in self.unsettled:
            raise Refused("needs names from elsewhere")
        if len(found) > 1 and not all(binding.is_import for binding in found):
            raise Refused("needs names from elsewhere")
        for binding in found:
            if not binding.is_import and rebinds_globals(binding.text):
                raise Refused("keeps state in its module")
            if binding.is_import:
                if _is_closed(binding.text):
                    raise Refused("needs a private or relative import")
            elif binding.is_empty:
                raise Refused("keeps state in its module")
        return found

    def _bind(self, node: ast.stmt) -> None:
        if isinstance(node, Definition):
            self._add(node.name, node, self._text(node))
        elif isinstance(node, ast.Import):
            for alias in node.names:
                self._add(alias.asname or alias.name.split(".")[0], node, f"import {ast.unparse(alias)}")
        elif isinstance(node, ast.ImportFrom):
            origin = "." * node.level + (node.module or "")
            for alias in node.names:
                self._add(alias.asname or alias.name, node, f"from {origin} import {ast.unparse(alias)}")
        elif isinstance(node, ast.Assign | ast.AnnAssign) and node.value is not None:
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            for name in sorted({name for target in targets for name in _names_bound_in(target)}):
                self._add(name, node, self._text(node), is_empty=_is_empty(node.value))

    def _add(self, name: str, node: ast.stmt, text: str, is_empty: bool = False) -> None:
        is_import = isinstance(node, ast.Import | ast.ImportFrom)
        self._bindings.setdefault(name, []).append(_Binding(node.lineno, text, is_import, is_empty))

    def _text(self, node: ast.stmt, without_docstring: bool = False) -> str:
        """Source lines of a top-level statement, comments included."""
        decorators = node.decorator_list if isinstance(node, Definition) else []
        first = min([node.lineno, *(decorator.lineno for decorator in decorators)])
        last = node.end_lineno or node.lineno
        skipped: set[int] = set()
        if without_docstring and isinstance(node, Function):
            docstring = node.body[0]
            following = node.body[1].lineno
            if isinstance(node.body[1], Definition) and node.body[1].decorator_list:
                following = node.body[1].decorator_list[0].lineno
            end = docstring.end_lineno or docstring.lineno
            if docstring.lineno <= node.lineno or following <= end:
                raise Refused("shares a line with its docstring")
            skipped = set(range(docstring.lineno, end + 1))
            while not self._lines[end].strip():  # the blank lines that set the docstring apart
                end += 1
                skipped.add(end)
            before = docstring.lineno - 1
            while not self._lines[before - 1].strip():
                skipped.add(before)
                before -= 1
        return "\n".join(self._lines[line - 1].rstrip() for line in range(first, last + 1) if line not in skipped)


def _is_closed(import_statement: str) -> bool:
    """Whether an import is relative, reaches for something private, or exists on Windows alone."""
    words = import_statement.replace(",", " ").split()
    module, imported = words[1], words[3] if words[0] == "from" else ""
    parts = [*module.split("."), imported or "x"]
    return parts[0] in _WINDOWS_ONLY or imported == "*" or any(not part or part.startswith("_") for part in parts)


def _is_empty(value: ast.expr) -> bool:
    if isinstance(value, ast.Dict):
        return not value.keys
    if isinstance(value, ast.List):
        return not value.elts
    if isinstance(value, ast.Call) and isinstance(value.func, ast.Name):
        return value.func.id in ("dict", "list", "set") and not value.args and not value.keywords
    return isinstance(value, ast.Constant) and value.value is None


def _names_bound_in(node: ast.AST) -> set[str]:
    names: set[str] = set()
    for item in ast.walk(node):
        if isinstance(item, ast.Name) and not isinstance(item.ctx, ast.Load):
            names.add(item.id)
        elif isinstance(item, Definition):
            names.add(item.name)
        elif isinstance(item, ast.alias):
            names.add(item.asname or item.name.split(".")[0])
    return names


def _join(bindings: list[_Binding]) -> str:
    """Imports first, then constants and definitions in the module's order, two blank lines around definitions."""
    imports = [binding.text for binding in bindings if binding.is_import]
    parts = ["\n".join(joined_imports(imports))] if imports else []
    for binding in bindings:
        if not binding.is_import:
            parts.append(binding.text)
    text = parts[0]
    for before, part in itertools.pairwise(parts):
        definitions = any(piece.startswith(("def ", "async def ", "class ", "@")) for piece in (before, part))
        text += ("\n\n\n" if definitions else "\n\n" if before is parts[0] and imports else "\n") + part
    return text


def joined_imports(imports: Iterable[str]) -> list[str]:
    """One statement for each module, as long as it fits a line; in the order in which they come first."""
    joined: list[str] = []
    last: dict[str, int] = {}
    for statement in dict.fromkeys(imports):
        origin, separator, name = statement.partition(" import ")
        at = last.get(origin)
        if at is not None and name != "*" and len(longer := f"{joined[at]}, {name}") <= _LINE:
            joined[at] = longer
            continue
        joined.append(statement)
        if separator and name != "*":
            last[origin] = len(joined) - 1
    return joined


def body_key(function: Function) -> str:
    """Equal for two functions whose bodies do the same statements, whatever their names and docstrings."""
    return "\n".join(ast.dump(statement) for statement in function.body[1:])


def renamed(code: str, old: str, new: str) -> str | None:
    """`code` with every use of the name `old` turned into `new`; None when that could change its meaning."""
    tokens = list(tokenize.generate_tokens(io.StringIO(code).readline))
    names = {token.string for token in tokens if token.type == tokenize.NAME}
    if not new.isidentifier() or new in names or new in BUILTINS or keyword.iskeyword(new):
        return None
    lines = code.split("\n")
    for before, token in reversed(list(itertools.pairwise(tokens))):
        if token.type == tokenize.NAME and token.string == old:
            if before.string == ".":
                return None  # an attribute of the same name: whose it is can't be told
            row, column = token.start
            line = lines[row - 1]
            lines[row - 1] = line[:column] + new + line[column + len(old) :]
    result = "\n".join(lines)
    return None if re.search(rf"\b{old}\b", result) else result  # still in an f-string or a comment
