"""Syntax: whether code parses, by CPython's own parser or by tree-sitter, and where an answer's fenced code is."""

from __future__ import annotations

import ast
import re
import symtable
import warnings
from collections.abc import Iterator, Sequence
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from tree_sitter import Language

FENCE = "```"

# As CommonMark 0.31 (4.5) has them, closed on a line of their own, so that backticks in a string of the code don't end
# it. Models also open one behind words (`Here: ```python`). A quote's or list's indentation is taken off the code.
_OPENING = re.compile(r"(```+)([^`\n]*)(?:\n|\Z)")
_CLOSING = re.compile(r"```+(?=[ \t]*(?:\n|\Z))")
_TAG = re.compile(r"[\w+#-]+")

_ALIASES = {
    "py": "python",
    "python3": "python",
    "js": "javascript",
    "jsx": "javascript",
    "mjs": "javascript",
    "node": "javascript",
    "ts": "typescript",
    "golang": "go",
    "rs": "rust",
    "c++": "cpp",
    "cc": "cpp",
    "cxx": "cpp",
    "hpp": "cpp",
    "h": "c",
    "c#": "csharp",
    "cs": "csharp",
}
# Language → module of its grammar, and the function in it.
_GRAMMARS = {
    "javascript": ("tree_sitter_javascript", "language"),
    "typescript": ("tree_sitter_typescript", "language_typescript"),
    "tsx": ("tree_sitter_typescript", "language_tsx"),
    "java": ("tree_sitter_java", "language"),
    "go": ("tree_sitter_go", "language"),
    "rust": ("tree_sitter_rust", "language"),
    "cpp": ("tree_sitter_cpp", "language"),
    "c": ("tree_sitter_c", "language"),
}
# C and C++ that tree-sitter can't be sure of: directives, names written as macros are, `typeid(int)`.
_UNSURE = re.compile(r"^\s*#\s*(?!include\b)\w|\b[A-Z][A-Z0-9_]+\b|\btypeid\b", re.MULTILINE)


def installed_grammars() -> tuple[str, ...]:
    """Languages besides Python that are judged here."""
    return tuple(language for language, (module, _) in _GRAMMARS.items() if find_spec(module))


class Block(NamedTuple):
    language: str
    """As `language_name` gives it; empty where the fence doesn't say."""
    code: str


def language_name(name: str) -> str:
    """One name for each language: `Py`, `python3` → `python`."""
    lowered = name.strip().lower()
    return _ALIASES.get(lowered, lowered)


def parses(code: str, language: str) -> bool | None:
    """Whether `code` is syntactically right; None where that can't be judged. Nothing of it is run."""
    name = language_name(language)
    if name == "python":
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # an invalid escape in someone's string
            return _python_parses(code)
    grammar = _grammar(name)
    if grammar is None:
        return None
    from tree_sitter import Parser

    if not Parser(grammar).parse(code.encode("utf-8", "surrogatepass")).root_node.has_error:
        return True
    return None if name in ("c", "cpp") and _UNSURE.search(code) else False


def valid_syntax(answers: Sequence[str]) -> list[bool]:
    """For each answer whether every fenced block that can be judged parses; one without has nothing to fail."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return [all(_is_valid(block) for block in fenced_blocks(answer)) for answer in answers]


def _is_valid(block: Block) -> bool:
    if block.language == "python":
        return _python_parses(block.code)
    return parses(block.code, block.language) is not False


def _python_parses(code: str) -> bool:
    # The symbol table is built on the parser's own tree, a quarter faster than ast.parse, which makes Python objects
    # of it. It also refuses what ast.parse accepts (`nonlocal` at the top), so ast.parse has the last word.
    try:
        symtable.symtable(code, "answer", "exec")
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        try:
            ast.parse(code)
        except (SyntaxError, ValueError, RecursionError, MemoryError):
            return False
    return True


def fenced_blocks(text: str) -> Iterator[Block]:
    """Code between fences, in order; a fence that is never closed goes to the end."""
    position = 0
    while opening := _OPENING.search(text, position):
        fence, info = opening[1], opening[2]
        before = text[text.rfind("\n", 0, opening.start()) + 1 : opening.start()]
        behind_words = before.strip(" \t>")
        if behind_words and not _TAG.fullmatch(info):
            position = opening.end()
            continue
        end, position = _closing(text, opening.end(), len(fence))
        code = text[opening.end() : end]
        if before and not behind_words:
            code = re.sub(rf"^[ \t>]{{1,{len(before)}}}", "", code, flags=re.MULTILINE)
        tag = _TAG.search(info)
        yield Block(language_name(tag[0]) if tag else "", code)


def _closing(text: str, start: int, backticks: int) -> tuple[int, int]:
    """Where the code that begins at `start` ends, and where to look on."""
    position = start
    while closing := _CLOSING.search(text, position):
        line = max(text.rfind("\n", start, closing.start()) + 1, start)
        if len(closing[0]) >= backticks and not text[line : closing.start()].strip(" \t>"):
            return line, closing.end()
        position = closing.end()
    # Closed on its last line of code, or never.
    return len(text) - len(FENCE) if text.endswith(FENCE, start) else len(text), len(text)


@cache
def _grammar(language: str) -> Language | None:
    """None where there is no grammar for it, or it isn't installed (extra `data`)."""
    if language not in _GRAMMARS:
        return None
    module, function = _GRAMMARS[language]
    try:
        from tree_sitter import Language

        return Language(getattr(import_module(module), function)())
    except ImportError:
        return None
