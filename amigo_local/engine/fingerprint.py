"""Content digests and stage fingerprints: what makes every step skippable and resumable."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import msgspec

_CHUNK = 4 << 20


def fingerprint(stage: str, version: int, params: Mapping[str, object], inputs: Mapping[str, str]) -> str:
    """Hex sha256 of stage name + version + params + digests of inputs, as canonical JSON."""
    text = json.dumps([stage, version, params, inputs], sort_keys=True, separators=(",", ":"), default=str)
    return hashlib.sha256(text.encode()).hexdigest()


def digest_file(path: Path, on_bytes: Callable[[int], None] | None = None) -> str:
    """`sha256:…` of a file's bytes; on_bytes is told how many were read since the last call."""
    sha = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            sha.update(chunk)
            if on_bytes:
                on_bytes(len(chunk))
    return f"sha256:{sha.hexdigest()}"


def digest_path(path: Path, digest_of: Callable[[Path], str] = digest_file) -> str:
    """Digest of a file, or of a directory's sorted `sha256:…  relative/name` lines."""
    if path.is_file():
        return digest_of(path)
    lines = [
        f"{digest_of(file)}  {file.relative_to(path).as_posix()}" for file in sorted(path.rglob("*")) if file.is_file()
    ]
    return "sha256:" + hashlib.sha256("\n".join(sorted(lines)).encode()).hexdigest()


def digest_of_parts(digests: Sequence[str]) -> str:
    """One digest for a thing that lies in several files, in their order."""
    return "sha256:" + hashlib.sha256("\n".join(digests).encode()).hexdigest()


def size_of(path: Path) -> int:
    """Bytes of a file, or of all files below a directory."""
    if path.is_file():
        return path.stat().st_size
    return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())


class DigestCache:
    """Remembers digests of files that have not changed (path, size, mtime, inode): a 7 GB GGUF is
    hashed once. Losing the file costs time only."""

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            self._known: dict[str, tuple[list[int], str]] = msgspec.json.decode(
                path.read_bytes(), type=dict[str, tuple[list[int], str]]
            )
        except (OSError, msgspec.MsgspecError):
            self._known = {}

    def digest(self, path: Path) -> str:
        """Digest of a file or directory, hashed only when something about it changed."""
        return digest_path(path, self._file)

    def _file(self, path: Path) -> str:
        stat = path.stat()
        key, mark = os.fspath(path.resolve()), [stat.st_size, stat.st_mtime_ns, stat.st_ino]
        known = self._known.get(key)
        if known and known[0] == mark:
            return known[1]
        digest = digest_file(path)
        self._known[key] = (mark, digest)
        try:
            partial = self._path.with_name(f"{self._path.name}.{os.getpid()}.partial")
            partial.write_bytes(msgspec.json.encode(self._known))
            partial.replace(self._path)
        except OSError:
            pass  # a read-only home must still answer questions; the digest itself is right
        return digest
