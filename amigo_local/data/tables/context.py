"""Mapping `context`: commitpackft's columns; the old file is given, and only what changes in it is the answer."""

from __future__ import annotations

import hashlib

from amigo_local.data.answer_blocks import fenced
from amigo_local.data.pair import Pair
from amigo_local.data.tables.commits import Change, Commits
from amigo_local.data.tables.python_change import PythonChange, change_of
from amigo_local.data.tables.rows import Row
from amigo_local.domain.answer_check import AnswerCheck

_MOST_DEFINITIONS = 2
_FEWEST_NAMES = 2  # an answer that uses less of its file teaches little about files
NEW_FILE, OTHER_LANGUAGE = "a new file gives no context", "not Python"
TOO_MANY, TOO_FEW = (
    f"changes more than {_MOST_DEFINITIONS} definitions",
    f"uses less than {_FEWEST_NAMES} names of its file",
)
_REQUESTS = (
    "This is `{path}`:\n\n{old}\n\n{subject}.{body} Give me only {what}.",
    "Given `{path}`:\n\n{old}\n\n{subject}.{body} Show {what} and nothing else of the file.",
    "{subject} in `{path}`.{body} Answer with {what} only.\n\n{old}",
)


class Context(Commits):
    used = "old_contents and message → request, the definitions that differ in new_contents → answer (Python)"

    def pair(self, row: Row, name: str) -> Pair | str:
        change = self.change(row)
        if isinstance(change, str):
            return change
        if change.language != "python":
            return OTHER_LANGUAGE
        if not change.old.strip():
            return NEW_FILE
        told = change_of(change.old, change.new)
        if isinstance(told, str):
            return told
        if len(told.names) > _MOST_DEFINITIONS:
            return TOO_MANY
        if len(told.used) < _FEWEST_NAMES:
            return TOO_FEW
        return Pair(
            prompt=_request(change, told),
            completion=fenced(told.code, "python"),
            source=self.label,
            module=change.module,
            name=name,
            license=self.license_of(row),
            language="python",
            check=AnswerCheck(skill="context", entry_point=told.names[0], names=told.used),
        )


def _request(change: Change, told: PythonChange) -> str:
    digest = hashlib.sha256(f"{change.path}\n{change.wish.subject}".encode("utf-8", "replace")).digest()
    parts = [f"the {'new' if name in told.added else 'changed'} `{name}`" for name in told.names]
    body = f"\n\n{change.wish.body}\n\n" if change.wish.body else ""
    text = _REQUESTS[digest[0] % len(_REQUESTS)].format(
        path=change.path,
        old=fenced(change.old, "python"),
        subject=change.wish.subject,
        body=body,
        what=" and ".join(parts),
    )
    return text.replace("\n\n ", "\n\n") if body else text


MAPPING = Context
