"""Finds the program in a chat answer: fenced, bare, or only the body of the function asked for."""

from __future__ import annotations

import ast
import re
import textwrap
import warnings

from amigo_local.domain.code_start import begins_like_python

_FENCE = re.compile(r"^[ \t]*```[^\n`]*\n(.*?)(?:^[ \t]*```|\Z)", re.DOTALL | re.MULTILINE)


def extract_code(answer: str, entry_point: str, prompt: str) -> str:
    """The Python source that defines `entry_point`, ready to run after the problem's imports.

    Taken from the first fenced block that defines it, else from the text itself; prose after the
    code and a torn end (an answer cut by its token limit) are left off. An answer that is only a
    body is put under `prompt`. Where nothing fits, what was found is returned, to fail its checks.
    """
    blocks = [textwrap.dedent(block) for block in fenced_texts(answer)]
    for text in [*blocks, answer]:
        code = _definition_in(text, entry_point)
        if code is not None:
            return code
    return _under(prompt, blocks[0] if blocks else answer)


def fenced_texts(answer: str) -> list[str]:
    """What stands between fences, in order; of a block that is cut what there is."""
    return _FENCE.findall(answer)


def _definition_in(text: str, entry_point: str) -> str | None:
    """The longest valid run of lines that begins like Python and defines `entry_point`."""
    definition = re.compile(rf"[ \t]*(?:async\s+)?def\s+{re.escape(entry_point)}\b")
    lines = text.splitlines()
    where = next((number for number, line in enumerate(lines) if definition.match(line)), None)
    if where is None:
        return None
    if _defines(text, entry_point):
        return text
    # Constants between imports and functions begin like nothing, so a whole valid text is best; after
    # that, each line that begins like Python, the earliest first.
    least = len(lines[where])
    for start in (number for number in range(where + 1) if begins_like_python(lines[number])):
        indentation = len(lines[start]) - len(lines[start].lstrip())
        if indentation > least:
            continue  # a method isn't the function asked for
        least = indentation
        end = len(lines)
        while end > where + 1:
            part = textwrap.dedent("\n".join(lines[start:end]))
            if _defines(part, entry_point):
                return part
            # The line of a syntax error is wrong in every longer part too.
            end = min(end - 1, start + _error_line(part) - 1)
    return None


def _error_line(code: str) -> int:
    """Line (from 1) of the first syntax error; past the end when there is none."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            ast.parse(code)
    except SyntaxError as error:
        return error.lineno or 1
    except (ValueError, RecursionError, MemoryError):
        return 1
    return len(code.splitlines()) + 1


def _defines(code: str, entry_point: str) -> bool:
    tree = _parsed(code)
    return tree is not None and any(
        isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name == entry_point for node in tree.body
    )


def _under(prompt: str, body: str) -> str:
    """`body` as the rest of the function that `prompt` begins; with the indentation that makes it valid."""
    body = body.strip("\n").rstrip()
    ways = (textwrap.indent(textwrap.dedent(body), "    "), f"    {body.lstrip()}", body)
    for way in ways:
        if _parsed(f"{prompt}{way}\n") is not None:
            return f"{prompt}{way}\n"
    return f"{prompt}{ways[0]}\n"


def _parsed(code: str) -> ast.Module | None:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # an invalid escape is no fault of ours
            return ast.parse(code)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None
