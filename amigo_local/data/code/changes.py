"""What changed between two texts of a file, as what is shown with a request and what answers it."""

from __future__ import annotations

import ast
import warnings

import msgspec

from amigo_local.data.code.standalone import Refused

LONGEST_SHOWN = 120
"""Lines of an old file that is shown whole; of a longer one, only what changes is shown."""
LONGEST_ANSWER = 90
_WHOLE_CLASS = 60


class Change(msgspec.Struct, frozen=True):
    shown: str
    answer: str


def change_of(language: str, old: str, new: str) -> Change:
    """Raises Refused with why it makes no pair.

    Of Python the answer is the top-level statements that are new or different (of a long class, its methods); of other
    languages it is the whole new file.
    """
    if "```" in old or "```" in new:
        raise Refused("commit: text holds a code fence")
    return _python(old, new) if language == "python" else _whole(old, new)


def _whole(old: str, new: str) -> Change:
    if max(old.count("\n"), new.count("\n")) > LONGEST_SHOWN:
        raise Refused("commit: file too long")
    if old.split() == new.split():
        raise Refused("commit: changes layout only")
    return Change(old.rstrip("\n"), new.rstrip("\n"))


def _python(old: str, new: str) -> Change:
    before, after = _Parts(old), _Parts(new)
    if ast.dump(before.tree) == ast.dump(after.tree):
        raise Refused("commit: changes comments or layout only")
    changed = [key for key in after.parts if before.dumps.get(key) != after.dumps[key]]
    if not changed:
        raise Refused("commit: only removes or moves")
    answer = after.joined(changed)
    if answer.count("\n") >= LONGEST_ANSWER:
        raise Refused("commit: change too long")
    if old.count("\n") <= LONGEST_SHOWN:
        return Change(old.rstrip("\n"), answer)
    concerned = [key for key in before.parts if key in changed or key not in after.parts]
    shown = before.joined([key for key in before.parts if key in concerned or before.is_import[key]])
    if not [key for key in concerned if not before.is_import[key]]:
        raise Refused("commit: only adds to a long file")
    if shown.count("\n") > LONGEST_SHOWN:
        raise Refused("commit: change too long")
    return Change(shown, answer)


Key = tuple[str, str]
"""Of a method its class and its name; of other statements an empty class, and a name or the text."""


class _Parts:
    """A module cut into its top-level statements, long classes into their methods."""

    def __init__(self, text: str) -> None:
        self.lines = text.split("\n")
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                self.tree = ast.parse(text)
        except (SyntaxError, ValueError, RecursionError) as error:
            raise Refused("commit: file isn't readable Python") from error
        self.parts: dict[Key, str] = {}
        self.dumps: dict[Key, str] = {}
        self.is_import: dict[Key, bool] = {}
        self._heads: dict[str, str] = {}
        for node in self.tree.body:
            if isinstance(node, ast.ClassDef) and (node.end_lineno or 0) - node.lineno > _WHOLE_CLASS:
                self._heads[node.name] = self._text(node).split(":\n")[0].rstrip(":") + ":"
                for item in node.body:
                    self._add(node.name, item)
            else:
                self._add("", node)

    def _add(self, owner: str, node: ast.stmt) -> None:
        named = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)
        text = self._text(node)
        key = (owner, node.name if named else _key_of(node))  # type: ignore[attr-defined]
        while key in self.parts:  # overloads, property setters
            key = (owner, f"{key[1]} again")
        self.parts[key], self.dumps[key] = text, ast.dump(node)
        self.is_import[key] = isinstance(node, ast.Import | ast.ImportFrom)

    def _text(self, node: ast.stmt) -> str:
        decorators = getattr(node, "decorator_list", [])
        first = min([node.lineno, *(decorator.lineno for decorator in decorators)])
        return "\n".join(line.rstrip() for line in self.lines[first - 1 : node.end_lineno])

    def joined(self, keys: list[Key]) -> str:
        """Valid Python: methods stand in their class."""
        text, owner, before_long = "", "", False
        for key in keys:
            part = self.parts[key]
            long = part.lstrip().startswith(("def ", "async def ", "class ", "@"))
            if key[0] and key[0] != owner:
                text += ("\n\n\n" if text else "") + self._heads[key[0]] + "\n" + part
            elif key[0]:
                text += ("\n\n" if long or before_long else "\n") + part
            else:
                text += (("\n\n\n" if long or before_long else "\n") if text else "") + part
            owner, before_long = key[0], long or bool(key[0])
        return text


def _key_of(node: ast.stmt) -> str:
    if isinstance(node, ast.Assign | ast.AnnAssign):
        targets = node.targets if isinstance(node, ast.Assign) else [node.target]
        return ", ".join(map(ast.unparse, targets)) + " ="
    return ast.unparse(node)
