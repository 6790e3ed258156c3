"""Hub sets: data sets of the hub for sources to read; what isn't on this disk is fetched as it is read."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from amigo_local.data.known_sets import known_set, nearest_set, substitute_for
from amigo_local.data.reading import HubAbsent, OpenHub
from amigo_local.data.tables.table import kind_of, listing
from amigo_local.domain.data_source import HubSource
from amigo_local.domain.errors import AmigoError, InputError
from amigo_local.domain.units import format_size
from amigo_local.engine.contract import StageContext

if TYPE_CHECKING:
    from amigo_local.serving.hub import Hub, HubFile, HubSnapshot
    from amigo_local.serving.set_cache import SetCache

FOLDER = "datasets"
_ABOUT_THE_SET = frozenset({"dataset_infos.json", "dataset_info.json", "dataset_dict.json", "state.json"})
_SPARE_BYTES = 256 << 20  # what a download leaves free on the disk


def open_hub(context: StageContext, endpoint: str | None = None) -> OpenHub:
    """Opens a set at the commit that its source's revision names. None of its code is run, and nothing is written
    before a file is fetched.

    Raises HubAbsent where no hub answers and the set isn't here; InputError for one that isn't shown, or that has no
    file of that pattern.
    """
    return _Opener(context, endpoint).open


@dataclass(frozen=True)
class _Set:
    revision: str
    license: str
    gated: bool
    files: tuple[_File, ...]


class _Opener:
    def __init__(self, context: StageContext, endpoint: str | None) -> None:
        from amigo_local.serving.set_cache import SetCache

        self._context, self._endpoint = context, endpoint
        self._cache = SetCache(context.workspace.root / FOLDER)
        self._absent: AmigoError | None = None  # one that didn't answer isn't asked again

    def open(self, source: HubSource) -> _Set:
        snapshot, hub = self._snapshot(source)
        known = known_set(source.hub)
        fetching = _Fetching(snapshot, hub, self._cache, self._context, source.revision or "main")
        files = tuple(_File(file.path, file.size_bytes, file, fetching) for file in _matching(snapshot, source))
        license = snapshot.license or (known.license if known else "")
        return _Set(snapshot.revision, license, snapshot.gated, files)

    def _snapshot(self, source: HubSource) -> tuple[HubSnapshot, Hub | None]:
        """Of a commit that was kept, without asking; of a branch, as the hub says, or as it was when last asked."""
        from amigo_local.serving.hub import HubUnreachable, NotShown
        from amigo_local.serving.set_cache import COMMIT, MAIN

        revision = source.revision or MAIN
        kept = self._cache.listing(source.hub, revision)
        hub = self._hub()
        if kept is not None and COMMIT.fullmatch(revision):
            return kept, hub
        try:
            if hub is None or self._absent is not None:
                raise self._absent or HubUnreachable("no hub answers")
            return hub.snapshot(source.hub, source.revision, "dataset"), hub
        except NotShown as error:
            raise _not_shown(source, error) from error
        except AmigoError as error:
            if isinstance(error, InputError) and not isinstance(error, HubUnreachable):
                raise
            self._absent = error  # unreachable, or it broke off before a word was said
            return self._without_hub(source, revision, kept, error), None

    def _without_hub(
        self, source: HubSource, revision: str, kept: HubSnapshot | None, error: AmigoError
    ) -> HubSnapshot:
        from amigo_local.serving.set_cache import client_snapshot, missing_shards

        found = kept or client_snapshot(source.hub, revision)
        if found is None:
            raise _absent(source, error)
        paths = [file.path for file in found.files if fnmatchcase(file.path, source.files)]
        here = [file.path for file in found.files if file.path in paths and self._cache.file(found, file)]
        lacking = [path for path in paths if path not in here] + list(missing_shards(here))
        if not here or lacking:
            some = f"; of its files, {listing(lacking)} aren't here" if lacking else ""
            raise _absent(source, error, some)
        self._context.note(
            f"{source.hub} is read from this disk, at {found.revision}: no hub says whether there is a newer commit"
        )
        return found

    def _hub(self) -> Hub | None:
        from amigo_local.serving.hub import Hub, HubUnreachable

        try:
            return Hub(self._endpoint)
        except InputError as error:  # no client
            self._absent = HubUnreachable(error.message, error.hint)
            return None


@dataclass(frozen=True)
class _Fetching:
    """What the files of one set have in common."""

    snapshot: HubSnapshot
    hub: Hub | None
    cache: SetCache
    context: StageContext
    branch: str


@dataclass(frozen=True)
class _File:
    path: str
    size_bytes: int
    _file: HubFile
    _of: _Fetching

    def local(self) -> Path:
        from amigo_local.serving.set_cache import COMMIT, MAIN

        of = self._of
        if (here := of.cache.file(of.snapshot, self._file)) is not None:
            return here
        hub = self._asked()
        # A pinned branch comes as a commit: what was fetched last is what main is at, for as long as no hub answers.
        of.cache.keep(of.snapshot, MAIN if COMMIT.fullmatch(of.branch) else of.branch)
        directory = of.cache.directory(of.snapshot)
        (directory / self.path).parent.mkdir(parents=True, exist_ok=True)
        self._check_space(directory)
        done = 0

        def on_bytes(count: int) -> None:
            nonlocal done
            done += count
            of.context.progress(
                f"fetching {of.snapshot.repo} {PurePosixPath(self.path).name}", done, self.size_bytes, "bytes"
            )

        with _absences(of.snapshot.repo, self.path):
            hub.download(of.snapshot, self._file, directory, on_bytes)
        return directory / self.path

    def part(self, start: int, stop: int) -> bytes:
        of = self._of
        if (here := of.cache.file(of.snapshot, self._file)) is not None:
            with here.open("rb") as file:
                file.seek(start)
                return file.read(stop - start)
        with _absences(of.snapshot.repo, self.path):
            return self._asked().read(of.snapshot, self.path, start, stop)

    def _asked(self) -> Hub:
        if self._of.hub is None:
            raise HubAbsent(
                f"{self._of.snapshot.repo}: {self.path} isn't here, and no hub answers", "check the network"
            )
        return self._of.hub

    def _check_space(self, directory: Path) -> None:
        partial = directory / f"{self.path}.partial"
        have = partial.stat().st_size if partial.exists() else 0
        free, wanted = shutil.disk_usage(directory).free, self.size_bytes - have + _SPARE_BYTES
        if free < wanted:
            raise InputError(
                f"the disk of {directory} is too small for {self.path} of {self._of.snapshot.repo}: it takes"
                f" {format_size(wanted)}, {format_size(free)} are free",
                "free some, narrow the source's files, or choose another home with --home DIR",
            )


def _matching(snapshot: HubSnapshot, source: HubSource) -> list[HubFile]:
    from amigo_local.serving.set_cache import is_safe

    found = [file for file in snapshot.files if fnmatchcase(file.path, source.files) and is_safe(file.path)]
    rows = [file for file in found if PurePosixPath(file.path).name not in _ABOUT_THE_SET]
    if not found:
        known = known_set(source.hub)
        there = sorted(file.path for file in snapshot.files if kind_of(file.path)) or [f.path for f in snapshot.files]
        raise InputError(
            f"{source.hub} has no file {source.files} at {snapshot.revision[:12]} (it has {listing(there)})",
            f"its rows are in: files: {known.files}" if known else "correct the source's files",
        )
    return sorted(rows or found, key=lambda file: file.path)


@contextlib.contextmanager
def _absences(repo: str, path: str) -> Iterator[None]:
    """A hub that stops answering is as absent as one that never did."""
    from amigo_local.serving.hub import HubUnreachable

    try:
        yield
    except HubUnreachable as error:
        raise HubAbsent(f"{repo}: {path} can't be fetched: {error.message}", error.hint) from error


def _absent(source: HubSource, error: AmigoError, some: str = "") -> HubAbsent:
    fetch = f"hf download {source.hub} --repo-type dataset --include '{source.files}'"
    return HubAbsent(f"{source.hub}: {error.message}{some}", f"{error.hint}; or, where a network is: {fetch}")


def _not_shown(source: HubSource, error: AmigoError) -> InputError:
    """With what to take instead, where that is known."""
    if substitute := substitute_for(source.hub):
        return InputError(f"{error.message}: {substitute.why}", f"take {substitute.instead}")
    if near := nearest_set(source.hub):
        return InputError(error.message, f"did you mean {near}? {error.hint}")
    return InputError(error.message, error.hint)
