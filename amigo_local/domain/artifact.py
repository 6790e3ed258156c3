"""Artifact: one finished thing on disk, with its digest, where it came from and what was proven."""

from __future__ import annotations

from typing import Literal

import msgspec

ArtifactKind = Literal[
    "gguf", "checkpoint", "tokenizer", "nf4", "adapter", "candidates", "dataset", "imatrix", "registration", "report"
]
Figure = float | int | str | bool | None


class Artifact(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a stage committed. Written as `artifact.json` in the workspace when the stage ends."""

    kind: ArtifactKind
    path: str
    """Absolute path of the file or directory."""
    digest: str
    """`sha256:…` of the file, or of the sorted `sha256  relative/name` lines of a directory."""
    size_bytes: int
    stage: str
    fingerprint: str
    sources: dict[str, str] = {}
    """Input name -> digest of what this was made from: the lineage."""
    figures: dict[str, Figure] = {}
    """Measured checks and counts, stored with what they were measured on."""
    run_id: str = ""
    created: float = 0.0
    """Seconds since the epoch."""
    params: dict[str, object] = {}
    """The stage's settings as they were, to make it again."""
