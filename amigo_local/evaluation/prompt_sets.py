"""Prompt sets: files of prompts to ask, as JSON lines or as plain text."""

from __future__ import annotations

import re
from pathlib import Path

from amigo_local.domain.errors import InputError
from amigo_local.evaluation.held_out import read_requests

_TEXT = (".txt", ".md")
_HINT = "one prompt a line, or longer ones apart by lines of ---; or JSON lines with a `prompt` column in a .jsonl"
_RULER = re.compile(r"^---[ \t]*$", re.MULTILINE)


def read_prompts(path: Path) -> tuple[str, ...]:
    """The prompts in order. `.txt` and `.md`: what stands between lines of `---`, or where there are none, every line
    that isn't blank. Any other file, or the folder of a set: what `evaluate --prompts` asks.

    Raises InputError when the file is missing, empty, binary, or a line of it has no prompt.
    """
    path = path.expanduser()
    prompts = _of_text(path) if path.suffix.lower() in _TEXT else _of_rows(path)
    if not prompts:
        raise InputError(f"{path} holds no prompts", _HINT)
    return prompts


def _of_rows(path: Path) -> tuple[str, ...]:
    try:
        prompts = tuple(request.prompt for request in read_requests(str(path)))
    except OSError as error:
        raise InputError(f"{path} can't be read: {error.strerror or error}", "check the path") from error
    for number, prompt in enumerate(prompts, 1):
        if not prompt.strip():
            raise InputError(f"{path}:{number}: the prompt is empty", "remove that line")
    return prompts


def _of_text(path: Path) -> tuple[str, ...]:
    try:
        content = path.read_bytes()
    except FileNotFoundError as error:
        raise InputError(f"there is no prompt file {path}", "give the path of a .jsonl, .txt or .md file") from error
    except OSError as error:
        raise InputError(f"{path} can't be read: {error.strerror or error}", "check the path") from error
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise InputError(f"{path}:{line}: no UTF-8 text", "save the prompts as UTF-8") from error
    if "\0" in text:
        line = text.count("\n", 0, text.index("\0")) + 1
        raise InputError(f"{path}:{line}: a binary file, no text", _HINT)
    text = text.replace("\r\n", "\n")
    parts = _RULER.split(text) if _RULER.search(text) else text.split("\n")
    return tuple(stripped for part in parts if (stripped := part.strip()))
