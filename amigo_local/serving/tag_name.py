"""TagName: an Ollama model name in full, and where its manifest lies in a store."""

from __future__ import annotations

import re
from pathlib import PurePosixPath

import msgspec

from amigo_local.domain.errors import InputError

# types/model/name.go: the parts that a name leaves out.
DEFAULT_HOST, DEFAULT_NAMESPACE, DEFAULT_TAG = "registry.ollama.ai", "library", "latest"
_PART = re.compile(r"[A-Za-z0-9_][\w.-]*")
_HOST = re.compile(r"[A-Za-z0-9_][\w.-]*(?::\d+)?")


class TagName(msgspec.Struct, frozen=True):
    host: str
    namespace: str
    model: str
    tag: str

    def __str__(self) -> str:
        """As the server lists it: `model:tag`, with host and namespace only where they aren't the defaults."""
        short = f"{self.model}:{self.tag}"
        if self.host != DEFAULT_HOST:
            return f"{self.host}/{self.namespace}/{short}"
        return short if self.namespace == DEFAULT_NAMESPACE else f"{self.namespace}/{short}"

    @property
    def manifest(self) -> PurePosixPath:
        """Path of the manifest file inside a store."""
        return PurePosixPath("manifests", self.host, self.namespace, self.model, self.tag)


def parse_tag_name(text: str) -> TagName:
    """Fills in what `text` leaves out. Raises InputError when it is no model name."""
    path, _, tag = text.partition(":") if "/" not in text else _split_tag(text)
    *places, model = path.split("/")
    host = places[0] if len(places) == 2 else DEFAULT_HOST
    namespace = places[-1] if places else DEFAULT_NAMESPACE
    name = TagName(host, namespace, model, tag or DEFAULT_TAG)
    parts = (name.namespace, name.model, name.tag)
    if len(places) > 2 or not _HOST.fullmatch(host) or not all(_PART.fullmatch(part) for part in parts):
        raise InputError(f"{text!r} is no Ollama model name", "write it like gemma3, gemma3:12b or namespace/model:tag")
    return name


def _split_tag(text: str) -> tuple[str, str, str]:
    """A colon before the last slash belongs to the host's port."""
    head, slash, last = text.rpartition("/")
    model, colon, tag = last.partition(":")
    return head + slash + model, colon, tag
