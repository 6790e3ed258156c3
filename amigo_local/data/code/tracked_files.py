"""Asks git which files of a folder it tracks, and runs git so that a repository's own settings start nothing."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

from amigo_local.data.reading import Reading
from amigo_local.domain.errors import InputError

# A repository's configuration can name programs: none of them is to run because somebody's code is read.
SAFE = ("-c", "core.fsmonitor=false", "-c", "core.hooksPath=/dev/null", "-c", "log.showSignature=false")
_SYMLINK, _SUBMODULE = "120000", "160000"


def git_environment() -> dict[str, str]:
    """Without GIT_DIR and the like, which would point it elsewhere; nothing is asked, fetched or locked."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    quiet = {"GIT_TERMINAL_PROMPT": "0", "GIT_OPTIONAL_LOCKS": "0", "GIT_NO_LAZY_FETCH": "1", "LC_ALL": "C"}
    return {**kept, **quiet}


def git_output(folder: Path, *arguments: str) -> bytes:
    """What git says. Raises InputError with git's own words, and when there is no git."""
    try:
        done = subprocess.run(
            ["git", *SAFE, "-C", str(folder), *arguments], capture_output=True, env=git_environment(), check=False
        )
    except FileNotFoundError as error:
        raise no_git() from error
    if done.returncode:
        said = done.stderr.decode("utf-8", "replace").strip().splitlines()
        raise InputError(
            f"{folder}: git can't read it ({said[0] if said else 'no reason given'})", f"git -C {folder} status"
        )
    return done.stdout


def no_git() -> InputError:
    return InputError(
        "commits can't be read: the program git isn't installed", "install git, or leave out take: [commits]"
    )


def is_repository(folder: Path) -> bool:
    """Whether git knows the folder; False as well where there is no git."""
    try:
        return git_output(folder, "rev-parse", "--is-inside-work-tree").strip() == b"true"
    except InputError:
        return False


def tracked_files(folder: Path, reading: Reading, ending: str) -> list[Path]:
    """Those below `folder` that end so, sorted; links and submodules are counted, files that are gone left out."""
    paths = []
    for entry in git_output(folder, "ls-files", "-z", "--stage").decode("utf-8", "surrogateescape").split("\0"):
        about, _, name = entry.partition("\t")
        mode = about.partition(" ")[0]
        if mode == _SUBMODULE:
            reading.skip("submodule", name)
        elif name.endswith(ending) and mode == _SYMLINK:
            reading.skip("symbolic link", name)
        elif name.endswith(ending) and _lies_inside(folder, name):
            paths.append(folder / name)
    return sorted(set(paths), key=lambda path: path.relative_to(folder).as_posix())


def _lies_inside(folder: Path, name: str) -> bool:
    """A tracked file may be gone, and a folder above it may have become a link to elsewhere."""
    path = folder / name
    return path.is_file() and path.resolve().is_relative_to(folder)
