"""NameUse: which of the names that a request supplies its answer uses, by Python's own scoping."""

from __future__ import annotations

import ast
import symtable
import warnings
from collections.abc import Iterable, Iterator


def names_used(code: str, supplied: Iterable[str]) -> tuple[str, ...]:
    """The supplied names that the code reads from outside itself, by Python's own scoping.

    A plain name counts where it is read as a global or as something imported; one that the code binds itself (a
    definition, a variable, a parameter) doesn't. A name after a dot counts where it is read, unless the code defines
    a function or class of that name. `a.b` must occur in full, with an `a` from outside.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", SyntaxWarning)
            tree = ast.parse(code)
            outside = set(_outside_names(symtable.symtable(code, "answer", "exec")))
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return ()
    nodes = list(ast.walk(tree))
    own = {node.name for node in nodes if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)}
    read = [node for node in nodes if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load)]
    attributes = {node.attr for node in read} - own
    dotted = {path for node in read if (path := _dotted(node)) and path.partition(".")[0] in outside}
    return tuple(name for name in dict.fromkeys(supplied) if name in outside | attributes | dotted)


def _outside_names(module: symtable.SymbolTable) -> Iterator[str]:
    own = {symbol.get_name() for symbol in module.get_symbols() if symbol.is_assigned() and not symbol.is_imported()}
    tables = [module]
    while tables:
        table = tables.pop()
        tables += table.get_children()
        for symbol in table.get_symbols():
            # What a module binds is as global as what it doesn't; `own` tells them apart.
            from_outside = table is module or symbol.is_global() or symbol.is_imported()
            if symbol.is_referenced() and from_outside and (symbol.is_imported() or symbol.get_name() not in own):
                yield symbol.get_name()


def _dotted(node: ast.expr) -> str | None:
    """`a.b.c` as text; None where something else than names is in it."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute) and (before := _dotted(node.value)):
        return f"{before}.{node.attr}"
    return None
