"""How a definition is shown to somebody who is to use it: whole when it is short, else what one must know of it."""

from __future__ import annotations

import ast
import textwrap
from collections.abc import Set

from amigo_local.data.code.standalone import Function, ModuleSource

_WHOLE_FUNCTION = 6
_WHOLE_CLASS = 14
_WHOLE_CONSTANT = 6
_METHODS = 8


def shown_definition(source: ModuleSource, name: str, node: ast.stmt, used: Set[str] = frozenset()) -> str:
    """Valid Python. `used` are the attributes that matter: of a long class, methods of those names come first."""
    text = source.text_of(node)
    lines = text.count("\n") + 1
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
        return text if lines <= _WHOLE_FUNCTION else _outline(source, node)
    if isinstance(node, ast.ClassDef):
        return text if lines <= _WHOLE_CLASS else _class_outline(source, node, used)
    return text if lines <= _WHOLE_CONSTANT and len(text) <= 400 else f"{name} = ...  # {lines} lines"


def _outline(source: ModuleSource, node: Function) -> str:
    """Decorators, signature and the docstring's first paragraph."""
    head = [f"@{ast.unparse(decorator)}" for decorator in node.decorator_list]
    returns = f" -> {ast.unparse(node.returns)}" if node.returns else ""
    word = "async def" if isinstance(node, ast.AsyncFunctionDef) else "def"
    head.append(f"{word} {node.name}({ast.unparse(node.args)}){returns}:")
    return "\n".join([*head, *_first_paragraph(node), "    ..."])


def _class_outline(source: ModuleSource, node: ast.ClassDef, used: Set[str]) -> str:
    head = [f"@{ast.unparse(decorator)}" for decorator in node.decorator_list]
    bases = ", ".join([*map(ast.unparse, node.bases), *map(ast.unparse, node.keywords)])
    head.append(f"class {node.name}({bases}):" if bases else f"class {node.name}:")
    parts = ["\n".join([*head, *_first_paragraph(node)])]
    fields = [item for item in node.body if isinstance(item, ast.Assign | ast.AnnAssign)]
    short = [ast.unparse(item) for item in fields if (item.end_lineno or item.lineno) - item.lineno < 3][:_METHODS]
    if short:
        parts.append(textwrap.indent("\n".join(short), "    "))
    methods = [item for item in node.body if isinstance(item, ast.FunctionDef | ast.AsyncFunctionDef)]
    ranked = sorted(methods, key=lambda item: (item.name not in used, item.name != "__init__", item.lineno))
    kept = {id(item) for item in ranked[:_METHODS]}
    parts += [textwrap.indent(_outline(source, item), "    ") for item in methods if id(item) in kept]
    if len(parts) == 1:
        parts.append("    ...")
    return "\n\n".join(parts) if len(parts) > 1 else parts[0]


def _first_paragraph(node: Function | ast.ClassDef) -> list[str]:
    docstring = ast.get_docstring(node)
    if not docstring or '"""' in docstring or "\\" in docstring:
        return []
    paragraph = docstring.strip().split("\n\n")[0]
    return textwrap.indent(f'"""{paragraph}"""', "    ").split("\n") if not paragraph.endswith('"') else []
