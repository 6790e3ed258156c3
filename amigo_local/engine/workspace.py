"""The home folder: runs with their journals, committed artifacts, and what is still being built."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec

from amigo_local.domain.artifact import Artifact
from amigo_local.domain.errors import InputError
from amigo_local.engine.fingerprint import DigestCache, size_of

_NAME_LENGTH = 16  # hex digits of the fingerprint in file names: 64 bits, plenty for one home


class Workspace:
    """One home. Nothing is created until something is written.

    artifacts/STAGE-FINGERPRINT            what a stage made
    artifacts/STAGE-FINGERPRINT.json       its Artifact record; its presence means "committed"
    artifacts/STAGE-FINGERPRINT.partial    being built
    runs/ID/journal.jsonl, runs/ID/run.json
    library/                               tags served by the embedded llama.cpp
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.artifacts_dir = root / "artifacts"
        self.runs_dir = root / "runs"
        self.library_dir = root / "library"
        self.cache_dir = root / "cache"
        self.digests = DigestCache(self.cache_dir / "digests.json")

    def prepare(self) -> None:
        """Creates the folders. Raises InputError where the home can't be written."""
        try:
            for folder in (self.artifacts_dir, self.runs_dir, self.library_dir, self.cache_dir):
                folder.mkdir(parents=True, exist_ok=True)
            probe = self.cache_dir / f".writable-{os.getpid()}"
            probe.touch()
            probe.unlink()
        except OSError as error:
            raise InputError(
                f"the home folder {self.root} can't be written: {error.strerror or error}",
                "choose another with --home DIR or AMIGO_HOME=DIR",
            ) from error

    def record_path(self, stage: str, fingerprint: str) -> Path:
        return self.artifacts_dir / f"{stage}-{fingerprint[:_NAME_LENGTH]}.json"

    def default_path(self, stage: str, fingerprint: str) -> Path:
        return self.artifacts_dir / f"{stage}-{fingerprint[:_NAME_LENGTH]}"

    def committed(self, stage: str, fingerprint: str) -> Artifact | None:
        """The artifact of that fingerprint, if it is committed and still on disk unchanged in size."""
        record = self.record_path(stage, fingerprint)
        self._finish_cut_commit(record)
        artifact = read_artifact(record)
        if artifact is None or artifact.fingerprint != fingerprint or not is_intact(artifact):
            return None
        return artifact

    def commit(self, artifact: Artifact, built: Path, target: Path) -> None:
        """Renames what was built to its place, then its record. A kill between the two is mended
        by the next call of `committed`: the record already waits beside it, complete.

        A directory under this home that no record claims is replaced; anything else that stands at
        `target` must have been refused before the work began.
        """
        record = self.record_path(artifact.stage, artifact.fingerprint)
        waiting = record.with_suffix(".json.partial")
        fsync_tree(built)
        write_synced(waiting, msgspec.json.format(msgspec.json.encode(artifact), indent=1))
        target.parent.mkdir(parents=True, exist_ok=True)
        if target.is_dir() and self.artifacts_dir in target.parents:
            shutil.rmtree(target)
        built.replace(target)
        fsync_directory(target.parent)
        waiting.replace(record)
        fsync_directory(record.parent)

    def _finish_cut_commit(self, record: Path) -> None:
        waiting = record.with_suffix(".json.partial")
        if not record.exists() and (artifact := read_artifact(waiting)) and is_intact(artifact):
            # Intact by size under its final name: renamed after fsync, so only the record is behind.
            waiting.replace(record)

    def artifacts(self) -> Iterator[Artifact]:
        """Every committed artifact, oldest first."""
        found = [artifact for record in self.artifacts_dir.glob("*.json") if (artifact := read_artifact(record))]
        yield from sorted(found, key=lambda artifact: artifact.created)

    def unfinished(self) -> list[Path]:
        """Build directories and records that no commit finished."""
        return sorted(self.artifacts_dir.glob("*.partial"))

    def forget(self, artifact: Artifact) -> None:
        """Removes an artifact that lies in this home, and its record; one written with --out stays
        where the person put it."""
        self.record_path(artifact.stage, artifact.fingerprint).unlink(missing_ok=True)
        if self.artifacts_dir in Path(artifact.path).parents:
            remove(self.default_path(artifact.stage, artifact.fingerprint))

    def new_run_id(self, verb: str, now: float) -> str:
        """`20261123-141502-run`; a suffix keeps two runs in one second apart."""
        stem = f"{time.strftime('%Y%m%d-%H%M%S', time.localtime(now))}-{verb}"
        name, n = stem, 1
        while (self.runs_dir / name).exists():
            n += 1
            name = f"{stem}-{n}"
        return name


def read_artifact(record: Path) -> Artifact | None:
    """The record in that file; None when there is none or it is torn."""
    try:
        return msgspec.json.decode(record.read_bytes(), type=Artifact)
    except (OSError, msgspec.MsgspecError, UnicodeDecodeError):
        return None


def is_intact(artifact: Artifact) -> bool:
    """Still there with the size it was committed with."""
    path = Path(artifact.path)
    return path.exists() and size_of(path) == artifact.size_bytes


def remove(path: Path) -> None:
    """Deletes a file or a directory; nothing happens when it isn't there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def write_synced(path: Path, data: bytes) -> None:
    """Writes and fsyncs, in place: callers rename afterwards."""
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def fsync_directory(path: Path) -> None:
    """Makes a rename durable. Windows has no such thing and needs none."""
    if os.name == "posix":
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def fsync_tree(path: Path) -> None:
    """fsyncs a file, or every file and directory below a directory."""
    for item in [path, *path.rglob("*")] if path.is_dir() else [path]:
        if item.is_dir():
            fsync_directory(item)
        elif item.is_file():
            with item.open("rb+") as file:
                os.fsync(file.fileno())
