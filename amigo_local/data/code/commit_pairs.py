"""Pairs of a commit: its message and the old text, and what the new one brings."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from amigo_local.data.code.changes import change_of
from amigo_local.data.code.code_tree import LARGEST_BYTES, VENDORED, folder_group, unfit_content
from amigo_local.data.code.git_history import ChangedFile, Commit, Texts, check_history, commits, is_shallow
from amigo_local.data.code.languages import language_of
from amigo_local.data.code.standalone import Refused
from amigo_local.data.pair import Pair
from amigo_local.data.phrasing import to_change
from amigo_local.data.reading import Reading
from amigo_local.domain.errors import InputError
from amigo_local.domain.events import Note, Progress

LONGEST_MESSAGE = 400
_FEWEST_WORDS = 3
_SAYS_NOTHING = re.compile(
    r"^(wip|tmp|temp|bump|merge|revert|release|version|changelog|typos?|format|lint|pre-commit|update dependenc\w*|"
    r"upgrade dependenc\w*|apply suggestions|address review|review comments?|"
    r"fix(es|ed)? (review|ci|lint|tests?|typos?|build)|"
    r"more (fixes|changes|work)|(small|minor|various|misc\w*) \w+$|\[?(automated|auto))\b|^v?\d+(\.\d+)+|^#\d+$",
    re.IGNORECASE,
)
_BOT = re.compile(r"\[bot\]|\b(bot|dependabot|renovate|github.actions|pre-commit-ci|greenkeeper|snyk)\b", re.IGNORECASE)
_TRAILER = re.compile(
    r"^[A-Z][\w-]*-(by|to|for|id|on|in|url|from|pr):|^(Fixes|Closes|Refs?|Bug|See|Cc|Link|PR|Issue)\b.{0,20}[:#]",
    re.IGNORECASE,
)
_PROSE = (".md", ".rst", ".txt")
_EMAIL = re.compile(r"\s*<?[\w.+-]+@[\w-]+\.[\w.-]+>?")


def commit_pairs(folder: Path, label: str, license: str, revision: str | None, reading: Reading) -> Iterator[Pair]:
    """From the newest commit back. Raises InputError where there is no history, or nothing of it could be used."""
    found = check_history(folder, revision)
    shallow = is_shallow(folder)
    taken = 0
    with Texts(folder, LARGEST_BYTES) as texts:
        for number, commit in enumerate(commits(folder, found)):
            reading.rows += 1
            if number % 100 == 0:
                reading.emit(Progress(f"reading commits of {label}", number, None, "commits"))
            try:
                pair = _pair(commit, texts, label, license)
            except Refused as refusal:
                reading.skip(str(refusal), commit.name[:10])
                continue
            taken += 1
            yield pair
    if shallow:
        what = f"{folder}: the clone is shallow: only its last commits are here"
        if not taken:
            raise InputError(f"{what}, and none makes a pair", f"git -C {folder} fetch --unshallow")
        reading.emit(Note(what, "warning", f"git -C {folder} fetch --unshallow"))


def wish_of(message: str) -> str:
    """What a commit's message asks for: its subject and first paragraph, without trailers, numbers and addresses.

    Raises Refused when it says nothing that could be followed.
    """
    lines = [line for line in message.strip().split("\n") if not _TRAILER.match(line.strip())]
    subject, _, body = "\n".join(lines).partition("\n")
    subject = re.sub(r"^([\w-]+)(\([^)]*\))?!?:\s+(?=\w)", "", subject.strip())
    subject = re.sub(r"\s*\(?(gh-|bpo-)?#\d+\)?", "", subject).strip(" .:-")
    if len(subject.split()) < _FEWEST_WORDS or _SAYS_NOTHING.search(subject):
        raise Refused("commit: message says nothing")
    paragraph = " ".join(body.strip().split("\n\n")[0].split())
    wish = _EMAIL.sub(
        "", f"{subject}.\n\n{paragraph}" if paragraph and len(paragraph) <= LONGEST_MESSAGE else f"{subject}."
    )
    return wish[0].upper() + wish[1:].strip()


def _pair(commit: Commit, texts: Texts, label: str, license: str) -> Pair:
    if _BOT.search(commit.author):
        raise Refused("commit: by a program")
    changed = _the_one_file(commit)
    wish = wish_of(commit.message)
    language = language_of(changed.path)
    if set(changed.path.split("/")[:-1]) & VENDORED:
        raise Refused("commit: vendored file")
    old, new = (_text(texts.read(name)) for name in (changed.old, changed.new))
    change = change_of(language, old, new)
    return Pair(
        prompt=to_change(commit.name, wish, changed.path, language, change.shown),
        completion=f"```{language}\n{change.answer}\n```",
        source=label,
        module=f"{label}:{folder_group(changed.path)}",
        name=f"{commit.name[:10]} {changed.path}",
        license=license,
        language=language,
    )


def _the_one_file(commit: Commit) -> ChangedFile:
    """The changed file of code; its tests and prose may have changed with it."""
    code = [file for file in commit.files if language_of(file.path)]
    sources = [file for file in code if not _is_test(file.path)] or code
    beside = sum(
        _is_test(file.path) or file.path.lower().endswith(_PROSE) for file in commit.files if file not in sources
    )
    if len(sources) != 1 or len(commit.files) > 1 + beside:
        raise Refused("commit: changes several files" if code else "commit: changes no code")
    if sources[0].status != "M" or not sources[0].is_plain:
        raise Refused("commit: adds or removes a file")
    return sources[0]


def _is_test(path: str) -> bool:
    *folders, name = path.lower().split("/")
    stem = name.partition(".")[0]
    return (
        bool({"test", "tests", "spec", "__tests__"} & set(folders))
        or stem.startswith("test_")
        or stem.endswith(("_test", "_spec"))
        or ".test." in name
        or ".spec." in name
    )


def _text(content: bytes | None) -> str:
    if content is None:
        raise Refused("commit: file larger than 1 MB, or not in this clone")
    if reason := unfit_content(content):
        raise Refused(f"commit: {reason}")
    try:
        return content.decode("utf-8").replace("\r\n", "\n")
    except UnicodeDecodeError as error:
        raise Refused("commit: file isn't UTF-8 text") from error
