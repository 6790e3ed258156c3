"""What the stages that read data have in common: a Reading, hub sets pinned to commits, digests of what goes in."""

from __future__ import annotations

import hashlib
import os
import platform
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from amigo_local.domain.data_source import (
    BugInjectionSource,
    CandidatesSource,
    DataSource,
    DoctestSource,
    FileSource,
    HubSource,
    PackageSource,
    RepoSource,
    StdlibSource,
    VotesSource,
)
from amigo_local.domain.errors import InputError
from amigo_local.domain.recipe import DataSettings
from amigo_local.domain.verdict import Verdict
from amigo_local.engine.contract import StageContext
from amigo_local.engine.fingerprint import digest_of_parts

if TYPE_CHECKING:
    from amigo_local.data.reading import OpenHub, Reading
    from amigo_local.evaluation.sandbox import Sandbox

ABSENT = "absent"
"""In the place of a digest: an optional set that no hub gave, or votes that nobody cast."""


def reading_of(context: StageContext, folders: Mapping[str, str] | None = None, seed: int = 0) -> Reading:
    """A fresh one, with everything that this machine can give a source."""
    from amigo_local.data.reading import Reading
    from amigo_local.stages._hub_sets import open_hub

    return Reading(
        emit=context.emit,
        judge=_LateSandbox(context.settings.unsafe).run,
        open_hub=open_hub(context),
        home=context.workspace.root,
        folders={key: Path(folder) for key, folder in (folders or {}).items()},
        seed=seed,
    )


class _LateSandbox:
    """A sandbox that is tried out when the first program is to be run: most sources run none."""

    def __init__(self, unsafe: bool) -> None:
        self._unsafe = unsafe
        self._sandbox: Sandbox | None = None
        self._lock = threading.Lock()

    def run(self, program: str) -> Verdict:
        """Raises InputError, with what to do, where no sandbox works."""
        from amigo_local.evaluation.sandbox import open_sandbox

        with self._lock:
            self._sandbox = self._sandbox or open_sandbox(self._unsafe)
        return self._sandbox.run(program)


def pinned(data: DataSettings, context: StageContext) -> DataSettings:
    """The settings with the commit of every hub set, so that the same settings always mean the same rows.

    An optional set that can't be reached stays as it is, which is said; another one raises HubAbsent. One that was
    reached isn't optional any more: its commit says that its rows are in the set.
    """
    from amigo_local.stages._hub_sets import open_hub

    hub = open_hub(context)
    return msgspec.structs.replace(data, sources=tuple(_pinned(source, hub, context) for source in data.sources))


def _pinned(source: Any, hub: OpenHub, context: StageContext) -> Any:
    if isinstance(source, CandidatesSource):
        inner = tuple(_pinned(each, hub, context) for each in source.candidates)
        return msgspec.structs.replace(source, candidates=inner)
    if not isinstance(source, HubSource):
        return source
    revision = _hub_revision(source, hub)
    if revision == ABSENT:
        context.note(f"{source.hub} can't be reached, and is left out", "warning", "amigo-local data check RECIPE")
        return source
    if revision != source.revision:
        context.note(f"{source.hub} is at {revision}")
    return msgspec.structs.replace(source, revision=revision, optional=False)


def _hub_revision(source: HubSource, hub: OpenHub) -> str:
    from amigo_local.data.reading import HubAbsent

    try:
        return hub(source).revision
    except HubAbsent:
        if source.optional:
            return ABSENT
        raise


def source_digests(sources: Sequence[DataSource], context: StageContext) -> dict[str, str]:
    """Name -> what pins the content of a source: digests of files, commits, versions. Raises InputError for files that
    aren't there. What earlier steps made isn't among it: its folders are other inputs."""
    from amigo_local.stages._hub_sets import open_hub

    found: dict[str, str] = {}
    hub = open_hub(context)
    for source in _flat(sources):
        for name, digest in _digests(source, hub, context):
            key, number = f"{source.kind}:{name}", 1
            while found.get(key, digest) != digest:  # another file or folder of that name
                number += 1
                key = f"{source.kind}:{name} ({number})"
            found[key] = digest
    return found


def _flat(sources: Sequence[DataSource]) -> Iterator[DataSource]:
    for source in sources:
        yield source
        if isinstance(source, CandidatesSource):
            yield from source.candidates


def _digests(source: DataSource, hub: OpenHub, context: StageContext) -> Iterator[tuple[str, str]]:
    match source:
        case StdlibSource():
            yield "python", platform.python_version()
        case PackageSource(package=names):
            yield from ((name, _package_version(name)) for name in _several(names))
        case DoctestSource(doctest=names) | BugInjectionSource(bug_injection=names):
            yield from ((Path(name).name, _code_version(name)) for name in _several(names))
        case RepoSource(repo=folder):
            yield Path(folder).name, _repository_version(source)
        case HubSource():
            yield source.hub, _hub_revision(source, hub)
        case VotesSource(votes=name):
            from amigo_local.data.votes import VOTES_FILE

            path = context.workspace.root / VOTES_FILE if name == "mine" else Path(name)
            yield path.name, context.workspace.digests.digest(path) if path.is_file() else ABSENT
        case _:
            if isinstance(source, FileSource):
                yield Path(str(getattr(source, source.kind))).name, _files_digest(source, context)


def _files_digest(source: FileSource, context: StageContext) -> str:
    """Of the very files that will be read."""
    from amigo_local.data.tables.table import tables_of

    digest = context.workspace.digests.digest
    return digest_of_parts([f"{digest(Path(table.path))}  {table.name}" for table in tables_of(source)])


def _several(names: str | tuple[str, ...]) -> tuple[str, ...]:
    return (names,) if isinstance(names, str) else names


def _code_version(name: str) -> str:
    """Of what has doctests or tests: the standard library, a folder or a package."""
    if name == "stdlib":
        return platform.python_version()
    is_folder = "/" in name or os.sep in name or name.startswith((".", "~"))  # as engine/data_paths tells them apart
    return _folder_version(Path(name)) if is_folder else _package_version(name)


def _package_version(name: str) -> str:
    """Of an import name's distributions; empty for one that isn't installed, which reading refuses."""
    from importlib import metadata

    found = metadata.packages_distributions().get(name.partition(".")[0], [])
    return " ".join(sorted(f"{each} {metadata.version(each)}" for each in set(found)))


def _repository_version(source: RepoSource) -> str:
    """History is read from a commit, whatever the files look like now; functions are read from the files, whatever
    `revision` says."""
    folder = Path(source.repo)
    history = (_commit(folder, source.revision or "HEAD") or "") if "commits" in source.take else ""
    if set(source.take) == {"commits"}:
        return history
    files = _folder_version(folder)
    return f"{files}, history of {history}" if history and not files.startswith(history) else files


def _folder_version(folder: Path) -> str:
    """The commit and what differs from it; of a folder that is no repository, what its files are."""
    head = _commit(folder, "HEAD")
    if head is None:
        return _listing(filter(_is_read, sorted(path for path in folder.rglob("*") if path.is_file())), folder)
    # What git doesn't track isn't read.
    changed = _git(folder, "status", "--porcelain", "-z", "--no-renames", "--untracked-files=no", ".") or ""
    top = Path((_git(folder, "rev-parse", "--show-toplevel") or str(folder)).strip())
    files = [file for entry in changed.split("\0") if entry and _is_read(file := top / entry[3:])]
    return f"{head} {_listing(files, top)}" if files else head


def _commit(folder: Path, revision: str) -> str | None:
    found = _git(folder, "rev-parse", "--verify", "--end-of-options", f"{revision}^{{commit}}")
    return found.strip() if found is not None else None


def _is_read(file: Path) -> bool:
    """Code, and what may say its licence; what is written beside it while a person works changes no sample."""
    return file.suffix == ".py" or file.name.lower().startswith(("licen", "copying", "unlicense"))


def _listing(files: Iterable[Path], folder: Path) -> str:
    """A digest of names, sizes and times: a tree that isn't committed may hold gigabytes beside its code."""
    lines = []
    for file in files:
        name = file.relative_to(folder).as_posix()
        try:
            stat = file.stat()
            lines.append(f"{name} {stat.st_size} {stat.st_mtime_ns}")
        except OSError:
            lines.append(f"{name} gone")
    return "sha256:" + hashlib.sha256(os.fsencode("\n".join(sorted(lines)))).hexdigest()


def _git(folder: Path, *arguments: str) -> str | None:
    """None where there is no git, or no repository."""
    from amigo_local.data.code.tracked_files import git_output

    try:
        return os.fsdecode(git_output(folder, *arguments))  # names of files are bytes, and needn't be UTF-8
    except InputError:
        return None
