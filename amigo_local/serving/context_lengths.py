"""Context lengths of a server's tags, which its list doesn't tell: asked once for each digest, then remembered."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import msgspec

from amigo_local.domain.errors import InputError
from amigo_local.serving.ollama_details import OllamaTag
from amigo_local.serving.ollama_server import OllamaServer

_AT_ONCE = 8  # a server reads a whole vocabulary to describe one tag


class ContextLengths:
    """A file of manifest digest -> tokens. A digest never comes to mean another model; losing the file costs time."""

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            self._known = msgspec.json.decode(path.read_bytes(), type=dict[str, int | None])
        except (OSError, msgspec.MsgspecError):
            self._known = {}

    def of(self, server: OllamaServer, tags: Iterable[OllamaTag]) -> dict[str, int | None]:
        """Digest -> tokens, None where the server doesn't say. A tag that it can't describe isn't in it."""
        listed = {tag.digest: tag.name for tag in tags if not tag.remote}
        new = {digest: name for digest, name in listed.items() if digest not in self._known}
        if new:
            with ThreadPoolExecutor(_AT_ONCE) as pool:
                lengths = pool.map(lambda name: _length(server, name), new.values())
            for digest, found in zip(new, lengths, strict=True):
                if found is not None:
                    self._known[digest] = found[0]
            self._write()
        return {digest: self._known[digest] for digest in listed if digest in self._known}

    def _write(self) -> None:
        aside = self._path.with_name(f"{self._path.name}.{os.getpid()}.partial")
        with contextlib.suppress(OSError):  # a read-only home must still answer questions
            aside.write_bytes(msgspec.json.encode(self._known))
            aside.replace(self._path)


def _length(server: OllamaServer, name: str) -> tuple[int | None] | None:
    try:
        return (server.show(name).context_length,)
    except InputError:
        return None
