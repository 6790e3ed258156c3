"""Which names a piece of Python takes from outside itself: what decides whether it stands alone."""

from __future__ import annotations

import builtins
import symtable

BUILTINS = frozenset(dir(builtins))


def free_names(source: str) -> frozenset[str]:
    """Names that `source` reads from its module and doesn't define there; builtins aside.

    Scoping is CPython's own (`symtable`), so comprehensions, nested functions, `nonlocal` and
    parameters are judged as the compiler judges them. Raises SyntaxError when it doesn't compile.
    """
    top = symtable.symtable(source, "<pair>", "exec")
    defined = {symbol.get_name() for symbol in top.get_symbols() if symbol.is_assigned() or symbol.is_imported()}
    wanted: set[str] = set()
    tables = [top]
    while tables:
        table = tables.pop()
        tables.extend(table.get_children())
        for symbol in table.get_symbols():
            at_module = table is top or symbol.is_global()
            if at_module and symbol.is_referenced():
                wanted.add(symbol.get_name())
    return frozenset(wanted - defined - BUILTINS)


def rebinds_globals(source: str) -> bool:
    """Whether any function in `source` says `global`: it keeps state in a module it no longer has."""
    tables = [symtable.symtable(source, "<pair>", "exec")]
    while tables:
        table = tables.pop()
        tables.extend(table.get_children())
        if table.get_type() == "function" and any(symbol.is_declared_global() for symbol in table.get_symbols()):
            return True
    return False
