"""Library: registered models in a folder of our own, for machines without an Ollama server."""

from __future__ import annotations

import contextlib
import difflib
import os
import time
from collections.abc import Callable
from pathlib import Path
from urllib.parse import quote

import msgspec

from amigo_local.domain.errors import InputError
from amigo_local.domain.modelfile import Modelfile
from amigo_local.serving.tag_name import parse_tag_name


class LibraryEntry(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One registered model. The GGUF stays where it is; size and time of change tell when it was touched."""

    tag: str
    gguf_path: str
    """Absolute."""
    size_bytes: int
    modified_ns: int
    created: float
    """Seconds since the epoch."""
    definition: Modelfile

    def usable_gguf(self) -> Path:
        """The file, when it still is what was registered. Raises InputError."""
        path = Path(self.gguf_path)
        again = f"register it again: amigo-local register FILE --tag {self.tag}"
        try:
            found = path.stat()
        except OSError as error:
            raise InputError(f"{self.tag}: its file {path} can't be read: {error.strerror}", again) from error
        if (found.st_size, found.st_mtime_ns) != (self.size_bytes, self.modified_ns):
            raise InputError(f"{self.tag}: its file {path} was changed after it was registered", again)
        return path


class Library:
    """A folder with one JSON file per tag."""

    def __init__(self, root: Path, clock: Callable[[], float] = time.time) -> None:
        self.root = root
        self._clock = clock

    def register(self, tag: str, gguf_path: Path, definition: Modelfile) -> LibraryEntry:
        """Adds or replaces an entry; the file is referenced, not copied. Raises InputError."""
        path = gguf_path.resolve()
        try:
            found = path.stat()
            with path.open("rb") as file:
                magic = file.read(4)
        except OSError as error:
            raise InputError(f"{path} can't be read: {error.strerror}", "give the path of a GGUF file") from error
        if magic != b"GGUF":
            raise InputError(f"{path} is no GGUF: it begins with {magic!r}", "give the path of a GGUF file")
        entry = LibraryEntry(
            tag=str(parse_tag_name(tag)),
            gguf_path=str(path),
            size_bytes=found.st_size,
            modified_ns=found.st_mtime_ns,
            created=self._clock(),
            definition=definition,
        )
        self._write(entry)
        return entry

    def entries(self) -> tuple[LibraryEntry, ...]:
        """Newest first. Raises InputError when a file is damaged, naming it."""
        files = sorted(self.root.glob("*.json")) if self.root.is_dir() else []
        return tuple(sorted(map(self._read, files), key=lambda entry: -entry.created))

    def get(self, tag: str) -> LibraryEntry:
        """Raises InputError with the nearest tags when there is none of that name."""
        path = self._path(tag)
        if path.is_file():
            return self._read(path)
        names = [entry.tag.removesuffix(":latest") for entry in self.entries()]
        near = difflib.get_close_matches(tag.removesuffix(":latest"), names, n=3, cutoff=0.5)
        nearest = f"; the nearest are {', '.join(near)}" if near else ""
        raise InputError(f"the library {self.root} has no {tag}{nearest}", "amigo-local models ls")

    def remove(self, tag: str) -> None:
        """Forgets an entry; its GGUF stays."""
        self.get(tag)
        self._path(tag).unlink()

    def _path(self, tag: str) -> Path:
        return self.root / f"{quote(str(parse_tag_name(tag)), safe='')}.json"

    def _read(self, path: Path) -> LibraryEntry:
        try:
            return msgspec.json.decode(path.read_bytes(), type=LibraryEntry)
        except (OSError, msgspec.DecodeError) as error:
            raise InputError(f"the library entry {path} can't be read: {error}", f"delete {path}") from error

    def _write(self, entry: LibraryEntry) -> None:
        path = self._path(entry.tag)
        partial = path.with_suffix(".partial")
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            with partial.open("wb") as file:
                file.write(msgspec.json.format(msgspec.json.encode(entry), indent=2))
                file.flush()
                os.fsync(file.fileno())
            partial.replace(path)
        except OSError as error:
            with contextlib.suppress(OSError):
                partial.unlink(missing_ok=True)
            message = f"the library {self.root} can't be written: {error.strerror}"
            raise InputError(message, "choose another home: --home DIR or AMIGO_HOME") from error
