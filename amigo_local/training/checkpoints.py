"""Checkpoints on disk: written aside, renamed when whole, the newest found again after a kill."""

from __future__ import annotations

import errno
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import msgspec

from amigo_local.domain.errors import AmigoError
from amigo_local.domain.units import format_size

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

    def write(self, step: int, fill: Callable[[Path], None], nbytes: int = 0, also_keep: int | None = None) -> Path:
        """Calls `fill(empty folder)`, then makes what it wrote the checkpoint of that step.

        also_keep: a step whose checkpoint is not removed however old it is. nbytes: about what it takes, for the
        AmigoError of a full disk; the checkpoints that were there are left as they were then.
        """
        final = self.at(step)
        partial = final.with_name(final.name + ".partial")
        shutil.rmtree(partial, ignore_errors=True)
        try:
            partial.mkdir(parents=True)
            fill(partial)
            sizes = {entry.name: entry.stat().st_size for entry in sorted(partial.iterdir())}
            for name in sizes:
                _sync(partial / name)
            _write_durably(partial / MANIFEST, msgspec.json.encode(sizes, order="sorted"))
        except BaseException as error:
            shutil.rmtree(partial, ignore_errors=True)
            if isinstance(error, Exception) and not _has_room(self.path, nbytes + (1 << 20)):
                raise self._disk_full(step, nbytes) from error
            raise
        shutil.rmtree(final, ignore_errors=True)
        partial.rename(final)
        _sync(self.path)
        kept = sorted(self._all(), key=step_of)[-self._keep :]
        for checkpoint in self._all():
            if checkpoint not in kept and step_of(checkpoint) != also_keep:
                shutil.rmtree(checkpoint)
        return final

    def _disk_full(self, step: int, nbytes: int) -> AmigoError:
        newest = self.newest()
        kept = f"the one of step {step_of(newest)} is whole" if newest else "there is none before it"
        return AmigoError(
            f"{self.path}: the disk is full: the checkpoint of step {step} takes about {format_size(nbytes)}, "
            f"{format_size(shutil.disk_usage(self.path).free)} are free; {kept}",
            "free some space and run again: training resumes at its last checkpoint",
        )

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


def _has_room(folder: Path, nbytes: int) -> bool:
    """By trying: torch and safetensors say it in errors of their own, and quotas are not in the count of free bytes."""
    probe, chunk = folder / "probe.partial", bytes(1 << 20)
    try:
        with probe.open("wb") as file:
            for _ in range(0, nbytes, len(chunk)):
                file.write(chunk)
    except OSError as error:
        return error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
    finally:
        probe.unlink(missing_ok=True)
    return True


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
