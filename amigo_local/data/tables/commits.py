"""Mapping `commits`: commitpackft's columns; what a message asks of a file, and the file after it."""

from __future__ import annotations

import hashlib
from pathlib import PurePosixPath
from typing import NamedTuple

from amigo_local.data.answer_blocks import fenced
from amigo_local.data.pair import Pair
from amigo_local.data.syntax import language_name
from amigo_local.data.tables.commit_message import Wish, wish_of
from amigo_local.data.tables.mapping import RowMapping, text_of
from amigo_local.data.tables.rows import Row

NO_TEXT, UNCHANGED, DELETED, BINARY = "column isn't text", "only whitespace changed", "file was deleted", "binary text"
_CHANGES = (
    "In `{path}`: {subject}.{body}\n\n{old}",
    "{subject}.{body} This is `{path}`:\n\n{old}",
    "Here is `{path}`:\n\n{old}\n\n{subject}.{body}",
    "Change `{path}` like this: {subject}.{body}\n\n{old}",
    "{old}\n\nThat is `{path}`. {subject}.{body} Give me the whole file.",
)
_BEGINNINGS = (
    "Write `{path}`: {subject}.{body}",
    "Create the file `{path}`. {subject}.{body}",
    "I need a new file `{path}`. {subject}.{body}",
)


class Change(NamedTuple):
    path: str
    language: str
    old: str
    new: str
    wish: Wish
    module: str
    """The repository, so that a file's history is on one side of the split."""


class Commits(RowMapping):
    columns = (("old_contents",), ("new_contents",), ("message", "subject"))
    optional = ("subject", "message", "old_file", "new_file", "repos", "commit")
    used = "message and old_contents → request, new_contents → answer"

    def pair(self, row: Row, name: str) -> Pair | str:
        change = self.change(row)
        if isinstance(change, str):
            return change
        return Pair(
            prompt=_request(change),
            completion=fenced(change.new, change.language),
            source=self.label,
            module=change.module,
            name=name,
            license=self.license_of(row),
            language=change.language,
        )

    def change(self, row: Row) -> Change | str:
        """What a row says, or why it can't be learnt from."""
        old, new = row.get("old_contents"), row.get("new_contents")
        if not isinstance(old, str) or not isinstance(new, str):
            missing = next((name for name in ("old_contents", "new_contents") if name not in row), None)
            return NO_TEXT if missing is None else f"no column {missing!r}"
        if not new.strip():
            return DELETED
        if "\0" in old or "\0" in new:
            return BINARY
        if old.split() == new.split():
            return UNCHANGED
        wish = wish_of(text_of(row, "subject"), text_of(row, "message"))
        if isinstance(wish, str):
            return wish
        path = text_of(row, "new_file", "old_file") or "the file"
        return Change(path, self.language_of(row) or _by_ending(path), old, new, wish, _repository(row))


def _request(change: Change) -> str:
    kinds = _CHANGES if change.old.strip() else _BEGINNINGS
    digest = hashlib.sha256(f"{change.path}\n{change.wish.subject}".encode("utf-8", "replace")).digest()
    body = f"\n\n{change.wish.body}\n\n" if change.wish.body else ""
    text = kinds[digest[0] % len(kinds)].format(
        path=change.path, subject=change.wish.subject, body=body, old=fenced(change.old, change.language)
    )
    return text.replace("\n\n\n\n", "\n\n").replace("\n\n ", "\n\n").strip() if body else text


def _repository(row: Row) -> str:
    """The first of a commit's repositories: the others are its forks."""
    repos = row.get("repos")
    if isinstance(repos, list):
        return str(repos[0]) if repos else ""
    return repos.split(",", 1)[0].strip() if isinstance(repos, str) else ""


_BY_ENDING = {
    ".py": "python",
    ".pyi": "python",
    ".rb": "ruby",
    ".sh": "bash",
    ".h": "c",
    ".hpp": "cpp",
    ".cc": "cpp",
    ".cs": "csharp",
    ".kt": "kotlin",
    ".md": "markdown",
    ".yml": "yaml",
}
_OWN_NAME = ("c", "cpp", "css", "go", "html", "java", "json", "lua", "php", "scala", "sql", "swift", "yaml")


def _by_ending(path: str) -> str:
    ending = PurePosixPath(path).suffix.lower()
    bare = ending.removeprefix(".")
    return _BY_ENDING.get(ending) or (
        bare if bare in _OWN_NAME else {n: language_name(n) for n in ("js", "ts", "rs")}.get(bare, "")
    )


MAPPING = Commits
