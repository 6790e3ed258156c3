"""Checkpoints on disk: written aside, renamed when whole, the newest found again after a kill."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import msgspec

MANIFEST = "whole.json"
"""File names and sizes of a finished checkpoint; written last."""
IDENTITY = "identity.json"
"""What the folder's checkpoints are checkpoints of."""
_NAME = re.compile(r"checkpoint-(\d+)")


class CheckpointFolder:
    """`checkpoint-<step>` folders of one run. One writer at a time: the stage's lock sees to that."""

    def __init__(self, path: Path, keep: int) -> None:
        self.path = path
        self._keep = keep

    def open(self, identity: dict[str, object]) -> bool:
        """Makes the folder ready and clears torn checkpoints away.

        Returns False when it held checkpoints of another run (other settings, data or base); those
        are removed.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        file, wanted = self.path / IDENTITY, msgspec.json.encode(identity, order="sorted")
        found = file.read_bytes() if file.is_file() else None
        same = found == wanted
        strangers = not same and any(_NAME.match(entry.name) for entry in self.path.iterdir())
        for entry in list(self.path.iterdir()):
            torn = entry.name.endswith(".partial") or (_NAME.fullmatch(entry.name) and not is_whole(entry))
            if entry.is_dir() and (strangers or torn):
                shutil.rmtree(entry)
        if not same:
            _write_durably(file, wanted)
        return not strangers

    def newest(self) -> Path | None:
        return max(self._all(), key=step_of, default=None)

    def at(self, step: int) -> Path:
        return self.path / f"checkpoint-{step}"

    def write(self, step: int, fill: Callable[[Path], None]) -> Path:
        """Calls `fill(empty folder)`, then makes what it wrote the checkpoint of that step."""
        final = self.at(step)
        partial = final.with_name(final.name + ".partial")
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        fill(partial)
        sizes = {entry.name: entry.stat().st_size for entry in sorted(partial.iterdir())}
        for name in sizes:
            _sync(partial / name)
        _write_durably(partial / MANIFEST, msgspec.json.encode(sizes, order="sorted"))
        shutil.rmtree(final, ignore_errors=True)
        partial.rename(final)
        _sync(self.path)
        for old in sorted(self._all(), key=step_of)[: -self._keep]:
            shutil.rmtree(old)
        return final

    def remove(self) -> None:
        shutil.rmtree(self.path, ignore_errors=True)

    def _all(self) -> list[Path]:
        return [entry for entry in self.path.iterdir() if _NAME.fullmatch(entry.name)]


def is_whole(checkpoint: Path) -> bool:
    """Every file that was written is there with its size."""
    try:
        sizes = msgspec.json.decode((checkpoint / MANIFEST).read_bytes(), type=dict[str, int])
        return all((checkpoint / name).stat().st_size == size for name, size in sizes.items())
    except (OSError, msgspec.DecodeError):
        return False


def step_of(checkpoint: Path) -> int:
    match = _NAME.fullmatch(checkpoint.name)
    return int(match[1]) if match else -1


def _write_durably(path: Path, content: bytes) -> None:
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _sync(path: Path) -> None:
    if os.name == "nt" and path.is_dir():
        return  # Windows can't open a folder to flush it
    descriptor = os.open(path, os.O_RDONLY if os.name != "nt" else os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
