"""Pair: one request and its answer, with where it came from and under which licence."""

from __future__ import annotations

import hashlib

import msgspec


class Pair(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    prompt: str
    completion: str
    source: str
    """Which source gave it: `stdlib`, or the file name of a JSON-lines source."""
    module: str = ""
    """Top-level module; empty where the source has none."""
    name: str = ""
    """Dotted name of the function, or `line N`."""
    license: str = ""
    """SPDX identifier; empty where the source doesn't say."""

    @property
    def answers(self) -> tuple[str, ...]:
        """Every answer there is to the prompt, the good one first."""
        return (self.completion,)

    @property
    def group(self) -> str:
        """What is never split between training and held-out: the module, or the prompt where there is none."""
        return self.module or f"prompt {hashlib.sha256(self.prompt.encode()).hexdigest()[:16]}"
