"""A git repository, or any folder of code: its functions, their contexts, and its commits."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from amigo_local.data.code.commit_pairs import commit_pairs
from amigo_local.data.code.contexts import context_pairs
from amigo_local.data.code.docstring_pairs import docstring_pairs
from amigo_local.data.code.git_history import check_history, is_shallow
from amigo_local.data.code.opened_tree import folder_tree, license_in
from amigo_local.data.pair import Pair
from amigo_local.data.reading import Reading, SourceFacts
from amigo_local.data.sources.stdlib import USED
from amigo_local.domain.data_source import RepoSource
from amigo_local.domain.errors import InputError

_USED = {**USED, "commits": "message and old text → request, new text → answer"}


def read(source: RepoSource, reading: Reading) -> Iterator[Pair]:
    """What `take` names, in its order. Raises InputError when nothing at all can be made of the folder."""
    folder = Path(source.repo).expanduser()
    if not folder.is_dir():
        raise InputError(f"{source.repo}: no such folder", "give the path of a git repository or of any folder of code")
    folder = folder.resolve()
    license = license_in(folder) if source.license is None else source.license
    if "commits" in source.take:
        check_history(folder, source.revision)  # before minutes of other work
    taken = 0
    for take in source.take:
        for pair in _pairs(take, source, folder, license, reading):
            taken += 1
            yield pair
    if not taken:
        most = ", ".join(f"{count} by {reason!r}" for reason, count in reading.skipped.most_common(3))
        raise InputError(
            f"{source.repo}: nothing in it makes a sample ({most or 'it holds no functions'})",
            "take another of commits, docstrings and context, or name a larger repository",
        )


def _pairs(take: str, source: RepoSource, folder: Path, license: str, reading: Reading) -> Iterator[Pair]:
    if take == "commits":
        return commit_pairs(folder, folder.name, license, source.revision, reading)
    tree = folder_tree(folder, reading, license)
    return docstring_pairs(tree, reading) if take == "docstrings" else context_pairs(tree, reading)


def look(source: RepoSource, reading: Reading) -> SourceFacts:
    folder = Path(source.repo).expanduser()
    problem = revision = ""
    size = None
    try:
        if set(source.take) != {"commits"}:
            tree = folder_tree(folder, reading, source.license)
            size = sum(file.path.stat().st_size for file in tree.files)
        if "commits" in source.take:
            revision = check_history(folder, source.revision)
            problem = "the clone is shallow: only its last commits are here" if is_shallow(folder) else ""
    except InputError as error:
        return SourceFacts(reachable=False, problem=error.message, fix=error.hint)
    license = license_in(folder) if source.license is None else source.license
    if not license:
        problem = "; ".join(filter(None, [problem, "no licence file whose text is known"]))
    fix = (
        f"git -C {source.repo} fetch --unshallow"
        if "shallow" in problem
        else ""
        if license
        else "say the source's license"
    )
    used = "; ".join(_USED[take] for take in source.take)
    return SourceFacts(
        reachable=True, problem=problem, fix=fix, revision=revision, license=license, size_bytes=size, used=used
    )
