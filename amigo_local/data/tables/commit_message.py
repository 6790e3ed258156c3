"""Commit message: what a person would have asked for, or why it asks for nothing."""

from __future__ import annotations

import re
from typing import NamedTuple

_LONGEST_BODY = 600  # characters; what is longer explains more than it asks
# Lines that tools put under a message, and the addresses in them (git interpret-trailers(1); git-svn; Gerrit).
_TRAILER = re.compile(
    r"^\s*(?:[A-Za-z][\w]*(?:-[\w]+)*-by|change-id|git-svn-id|cc|bug|issue|test|closes|fixes|refs?|see|reviewed-on"
    r"|pull-request|related-bug|closes-bug|partial-bug|depends-on|implements|svn path|original commit|conflicts)"
    r"\s*[:=].*$",
    re.IGNORECASE,
)
_REFERENCE = re.compile(
    r"\s*[\[(]?\b(?:(?:close[sd]?|fix(?:e[sd])?|resolve[sd]?|refs?|see|issue|gh|pr)\b[ :]*)+#\d+[\])]?"
    r"|\s*\(#\d+\)|\s*\[#?\d+\]|^\s*#\d+[:, -]*|^\s*\[?[A-Z][A-Z0-9]+-\d+\]?[:, -]*",
    re.IGNORECASE,
)
_TYPE = re.compile(
    r"^\s*(?:(?:feat|fix|docs?|style|refactor|perf|test|tests|build|ci|chore|misc|bugfix|hotfix)(?:\([^)]*\))?!?:\s*"
    r"|:[a-z0-9_+-]+:\s*|\[[^\]]{1,20}\]\s*)+",
    re.IGNORECASE,
)  # Conventional Commits 1.0, gitmoji, and [MOD]-like marks
_MERGE = re.compile(
    r"^\s*merge(?:d|s)?\b.*\b(?:branch|pull|remote|tag|commit|from|into|master|upstream|pr)\b", re.IGNORECASE
)
_REVERT = re.compile(r"^\s*(?:this )?reverts?\b|^\s*(?:undo|back ?out)\b", re.IGNORECASE)
_BOT = re.compile(
    r"^\s*(?:(?:chore|build|fix|ci)?\(?(?:deps|release)(?:-dev)?\)?:|bump\b|auto[- ]?(?:generated|mated|commit|update)"
    r"|\[?(?:bot|automated|maven-release-plugin|gradle release|release|ci skip|skip ci)\b"
    r"|(?:prepar\w+|releas\w+|tag\w*)\s+(?:for\s+)?(?:release|version|v?\d)|version\s+(?:bump|v?\d)|v?\d+(?:\.\d+)+\b"
    r"|new version\b|update dependency\b|pin dependenc|update translations?\b|pre-commit autoupdate|\[pre-commit)"
    r"|dependabot|renovate|greenkeeper",
    re.IGNORECASE,
)
_BOT_SIGNED = re.compile(r"(?:signed-off-by|co-authored-by):.*\[bot\]|dependabot\[bot\]", re.IGNORECASE)
# Words that name a change and nothing of what it is; a message of these alone says nothing.
_NOTHING = frozenset(
    """
    a all again an and another better bit bug bugfix bugs change changed changes clean cleaned cleaning cleanup
    code comment comments commit config correct corrected correction corrections create created delete deleted doc
    docs documentation edit edited error errors file files final finally fix fixed fixes fixing few for format
    formatting hotfix improve improved improvement improvements in initial init issue issues last lint little make
    minor misc modified modify more moved new now of on oops other outdated pep8 pep progress quick readme refactor
    refactored refactoring remove removed rename renamed review save script small some stuff style syntax temp test
    tested testing tests the thing things tidy tiny to tweak tweaked tweaks typo typos unused up update updated
    updates updating use various version whitespace wip with work working works
    """.split()  # noqa: SIM905 -- prose, not a column of literals
)
_FEWEST_WORDS = 2

MERGE, REVERT, BOT, NOTHING = "merge commit", "commit that reverts", "bot's or release commit", "message says nothing"


class Wish(NamedTuple):
    subject: str
    """One line without reference, type or full stop."""
    body: str
    """What it says besides; empty where that is nothing or too much."""


def wish_of(subject: str, message: str) -> Wish | str:
    """Or the reason why it asks for nothing. `message` holds the subject too, as git writes it; either may be empty."""
    lines = (message or subject).strip().splitlines() or [""]
    first = subject.strip() or lines[0].strip()
    if lines and (lines[0].strip() == first or first.startswith(lines[0].strip())):
        lines = lines[1:]
    if _MERGE.search(first):
        return MERGE
    if _REVERT.search(first):
        return REVERT
    if _BOT.search(first) or _BOT_SIGNED.search(message):
        return BOT
    said = _REFERENCE.sub("", _TYPE.sub("", _REFERENCE.sub("", first))).strip().rstrip(".:;, ")
    words = re.findall(r"[^\W_]+", said.lower())
    files = re.findall(r"\b[\w/-]+\.\w{1,4}\b", said.lower())  # "Update setup.py": where, not what
    of_files = {part for name in files for part in re.findall(r"[^\W_]+", name)}
    if len(words) < _FEWEST_WORDS or all(w in _NOTHING or w in of_files or w.isdigit() for w in words):
        return NOTHING
    return Wish(said[0].upper() + said[1:], _body(lines))


def _body(lines: list[str]) -> str:
    kept = [line.rstrip() for line in lines if not _TRAILER.match(line)]
    body = _REFERENCE.sub("", re.sub(r"\n{3,}", "\n\n", "\n".join(kept))).strip()
    return body if len(body) <= _LONGEST_BODY and re.search(r"\w{3}", body) else ""
