"""Reads a repository's history as a stream: which files a commit changed, and their texts before and after."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType

import msgspec

from amigo_local.data.code.tracked_files import SAFE, git_environment, git_output, no_git
from amigo_local.domain.errors import InputError

_PIECE = 1 << 16
_FORMAT = "%x02%H%x1f%an%x1f%B%x03"


class ChangedFile(msgspec.Struct, frozen=True):
    path: str
    status: str
    """As git says it: M changed, A added, D removed, T another type."""
    old: str
    """Names of the two texts; of no text, zeros."""
    new: str
    is_plain: bool
    """A regular file on both sides: no link, no submodule."""


class Commit(msgspec.Struct, frozen=True):
    name: str
    """40 or 64 hex digits."""
    author: str
    """Name only, to tell programs from people; goes nowhere."""
    message: str
    files: tuple[ChangedFile, ...]


def check_history(folder: Path, revision: str | None) -> str:
    """The commit that the history is read from. Raises InputError where there is no history to read."""
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder", "give the path of a git repository")
    try:
        inside = git_output(folder, "rev-parse", "--is-inside-work-tree", "--is-bare-repository")
    except InputError as error:
        if "isn't installed" in error.message:
            raise
        if "ownership" in error.message:
            raise InputError(
                f"{folder}: git refuses a repository that another user owns",
                f"git config --global --add safe.directory {folder}",
            ) from error
        raise InputError(
            f"{folder} is no git repository, so it has no commits", "leave commits out: take: [docstrings, context]"
        ) from error
    if b"true" not in inside:
        raise InputError(f"{folder}: git has no files to show here", "give the folder that holds the .git folder")
    try:
        found = git_output(
            folder, "rev-parse", "--verify", "--quiet", "--end-of-options", f"{revision or 'HEAD'}^{{commit}}"
        )
    except InputError as error:
        if revision is None:
            raise InputError(
                f"{folder}: the repository has no commits yet", "commit something, or leave commits out"
            ) from error
        raise InputError(f"{folder}: no branch, tag or commit {revision!r}", f"git -C {folder} branch --all") from error
    return found.decode().strip()


def is_shallow(folder: Path) -> bool:
    return git_output(folder, "rev-parse", "--is-shallow-repository").strip() == b"true"


def commits(folder: Path, revision: str) -> Iterator[Commit]:
    """From `revision` back, without merges, only what lies below `folder`; never the whole log in memory."""
    command = ["git", *SAFE, "-C", str(folder), "log", "-z", "--raw", "--no-abbrev", "--no-renames", "--no-merges"]
    command += ["--no-mailmap", "--no-color", "--no-show-signature", "--relative", f"--format=tformat:{_FORMAT}"]
    command += ["--end-of-options", revision, "--", "."]
    process = _started(command, stdin=subprocess.DEVNULL)
    assert process.stdout is not None
    try:
        yield from _parsed(_tokens(process))
    finally:
        process.stdout.close()
        process.kill() if process.poll() is None else None
        process.wait()


def _tokens(process: subprocess.Popen[bytes]) -> Iterator[str]:
    assert process.stdout is not None
    rest = b""
    while piece := process.stdout.read(_PIECE):
        *whole, rest = (rest + piece).split(b"\0")
        yield from (token.decode("utf-8", "replace") for token in whole)
    if rest:
        yield rest.decode("utf-8", "replace")


def _parsed(tokens: Iterator[str]) -> Iterator[Commit]:
    head: list[str] = []
    files: list[ChangedFile] = []
    for token in tokens:
        token = token.lstrip("\n")
        if token.startswith("\x02"):
            if head:
                yield Commit(head[0], head[1], head[2], tuple(files))
            head, files = token[1:].rstrip("\x03").split("\x1f", 2), []
        elif token.startswith(":"):
            old_mode, new_mode, old, new, status = token[1:].split(" ")
            modes = {old_mode, new_mode} - {"000000"}
            files.append(ChangedFile(next(tokens), status[0], old, new, modes <= {"100644", "100755"}))
    if head:
        yield Commit(head[0], head[1], head[2], tuple(files))


class Texts:
    """Contents by their names, from one `git cat-file` that stays open."""

    def __init__(self, folder: Path, largest_bytes: int) -> None:
        self._largest = largest_bytes
        self._process = _started(["git", *SAFE, "-C", str(folder), "cat-file", "--batch"], stdin=subprocess.PIPE)

    def __enter__(self) -> Texts:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()
        self._process.wait()

    def read(self, name: str) -> bytes | None:
        """None when it isn't in this clone, or is larger than what was allowed."""
        if set(name) == {"0"}:
            return None
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin is not None and stdout is not None
        stdin.write(name.encode() + b"\n")
        stdin.flush()
        header = stdout.readline().split()
        if len(header) != 3:  # `NAME missing`
            return None
        size = int(header[2])
        kept = stdout.read(size) if size <= self._largest else None
        left = 0 if kept is not None else size
        while left:  # what is too large is read past, a piece at a time
            left -= len(stdout.read(min(left, _PIECE)))
        stdout.read(1)
        return kept if header[1] == b"blob" else None


def _started(command: list[str], stdin: int) -> subprocess.Popen[bytes]:
    try:
        return subprocess.Popen(
            command, stdin=stdin, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=git_environment()
        )
    except FileNotFoundError as error:
        raise no_git() from error
