"""Set cache: data sets of the hub that are on this disk already, in our home and in huggingface_hub's own cache."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

import msgspec

from amigo_local.domain.errors import InputError
from amigo_local.serving.hub import HubFile, HubSnapshot

MAIN = "main"
COMMIT = re.compile(r"[0-9a-f]{40}")
_LICENSE_LINE = re.compile(r"^license:\s*[\"']?([\w.+-]+)", re.MULTILINE)
_CARD_BYTES = 64 << 10


class SetCache:
    """`folder`/ORG--NAME/COMMIT/… files; COMMIT.json which files that commit has; refs/BRANCH the commit it was at."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def directory(self, snapshot: HubSnapshot) -> Path:
        """Where the files of a commit are kept."""
        return self._of(snapshot.repo) / snapshot.revision

    def listing(self, repo: str, revision: str) -> HubSnapshot | None:
        """What was kept of a commit; of a branch, of the commit that it was at when last asked."""
        commit = revision if COMMIT.fullmatch(revision) else _line_of(self._ref(repo, revision))
        try:
            data = (self._of(repo) / f"{commit}.json").read_bytes()
            return msgspec.json.decode(data, type=HubSnapshot)
        except (OSError, msgspec.MsgspecError):
            return None

    def keep(self, snapshot: HubSnapshot, branch: str) -> None:
        """Raises InputError where the home can't be written."""
        try:
            self.directory(snapshot).mkdir(parents=True, exist_ok=True)
            _write(self._of(snapshot.repo) / f"{snapshot.revision}.json", msgspec.json.encode(snapshot))
            if not COMMIT.fullmatch(branch):
                _write(self._ref(snapshot.repo, branch), snapshot.revision.encode())
        except OSError as error:
            raise InputError(
                f"{self._folder} can't be written: {error.strerror or error}",
                "choose another home with --home DIR or AMIGO_HOME=DIR",
            ) from error

    def file(self, snapshot: HubSnapshot, file: HubFile) -> Path | None:
        """Where the file lies whole, here or in huggingface_hub's cache; None: it has to be fetched."""
        places = [self.directory(snapshot) / file.path]
        if (cache := _client_cache(snapshot.repo)) is not None:
            places.append(cache / "snapshots" / snapshot.revision / file.path)
        for place in places:
            try:
                if place.stat().st_size == file.size_bytes:
                    return place
            except OSError:
                continue
        return None

    def _of(self, repo: str) -> Path:
        return self._folder / repo.replace("/", "--")

    def _ref(self, repo: str, branch: str) -> Path:
        return self._of(repo) / "refs" / branch.replace("/", "--")


def client_snapshot(repo: str, revision: str) -> HubSnapshot | None:
    """What huggingface_hub's cache holds of a data set: those files alone that somebody fetched."""
    cache = _client_cache(repo)
    if cache is None:
        return None
    commit = revision if COMMIT.fullmatch(revision) else _line_of(cache / "refs" / revision)
    folder = cache / "snapshots" / commit
    if not COMMIT.fullmatch(commit) or not folder.is_dir():
        return None
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    files = tuple(HubFile(path.relative_to(folder).as_posix(), path.stat().st_size) for path in paths)
    return HubSnapshot(repo, commit, False, files, "dataset", _card_license(folder / "README.md"))


def missing_shards(paths: list[str]) -> Iterator[str]:
    """Names of those that `train-00000-of-00006.parquet` says there are, and aren't among the paths."""
    there = set(paths)
    for path in paths:
        if shard := re.fullmatch(r"(.*)-(\d{5})-of-(\d{5})(\D.*)", path):
            names = (f"{shard[1]}-{number:05d}-of-{shard[3]}{shard[4]}" for number in range(int(shard[3])))
            for name in names:
                if name not in there:
                    there.add(name)
                    yield name


def is_safe(path: str) -> bool:
    """Whether a path that a hub told stays in the folder it is put into."""
    parts = PurePosixPath(path).parts
    return bool(parts) and not path.startswith("/") and ".." not in parts and "\\" not in path and ":" not in parts[0]


def _client_cache(repo: str) -> Path | None:
    """The layout is documented: huggingface.co/docs/huggingface_hub/guides/manage-cache."""
    try:
        from huggingface_hub import constants
    except ImportError:
        return None
    return Path(constants.HF_HUB_CACHE) / f"datasets--{repo.replace('/', '--')}"


def _line_of(path: Path) -> str:
    try:
        return path.read_text("utf-8").strip()
    except (OSError, UnicodeDecodeError):
        return ""


def _card_license(card: Path) -> str:
    """From the YAML before a card's text."""
    try:
        with card.open(encoding="utf-8", errors="replace") as file:
            text = file.read(_CARD_BYTES)
    except OSError:
        return ""
    head = text.split("\n---", 1)[0] if text.startswith("---") else ""
    found = _LICENSE_LINE.search(head)
    return found[1] if found else ""


def _write(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.partial")
    with partial.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)
