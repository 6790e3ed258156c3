"""What each field of a settings struct means: the docstring that stands under it in the source."""

from __future__ import annotations

import ast
import inspect
import sys
import typing
from collections.abc import Iterator, Mapping
from functools import cache
from types import MappingProxyType

import msgspec
from msgspec import Meta


@cache
def field_docs(struct: type[msgspec.Struct]) -> Mapping[str, str]:
    """Field name -> one line of text; what says nothing is absent. A field described by its `Meta` (a stage's
    `option(…)`) says that where it has no docstring."""
    hints = typing.get_type_hints(struct, include_extras=True)
    docs = {name: text for name, hint in hints.items() if (text := _described(hint))}
    for owner in reversed(struct.__mro__):
        docs |= _docs_of_module(owner.__module__).get(owner.__qualname__, {})
    return MappingProxyType({name: docs[name] for name in struct.__struct_fields__ if name in docs})


def _described(hint: object) -> str:
    metas = [meta for meta in typing.get_args(hint)[1:] if isinstance(meta, Meta)]
    return next((meta.description for meta in metas if meta.description), "")


@cache
def _docs_of_module(name: str) -> Mapping[str, Mapping[str, str]]:
    """Class -> field -> text. Empty where there is no source, as for what is built in."""
    try:
        tree = ast.parse(inspect.getsource(sys.modules[name]))
    except (KeyError, OSError, TypeError):
        return {}
    return {node.name: dict(_under_fields(node)) for node in tree.body if isinstance(node, ast.ClassDef)}


def _under_fields(node: ast.ClassDef) -> Iterator[tuple[str, str]]:
    for field, below in zip(node.body, node.body[1:], strict=False):
        if not isinstance(field, ast.AnnAssign) or not isinstance(field.target, ast.Name):
            continue
        if isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant) and isinstance(below.value.value, str):
            yield field.target.id, " ".join(below.value.value.split())
