"""Pair: one request and its answer, with where it came from, under which licence, and how an answer can be judged."""

from __future__ import annotations

import hashlib

import msgspec

from amigo_local.domain.answer_check import AnswerCheck


class Pair(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    prompt: str
    completion: str
    source: str
    """Which source gave it: `stdlib`, the file name of a table, `org/name` of a hub's set."""
    module: str = ""
    """What is never split between training and held-out: a top-level module, a problem; empty: this pair alone."""
    name: str = ""
    """Dotted name of the function, or `line N`: for finding it again."""
    license: str = ""
    """SPDX identifier; empty where the source doesn't say."""
    language: str = ""
    """Programming language of the code, in lower case; empty where the source doesn't say."""
    check: AnswerCheck | None = None
    """None: nothing but reading it says whether an answer is good."""

    @property
    def answers(self) -> tuple[str, ...]:
        """Every answer there is to the prompt, the good one first."""
        return (self.completion,)

    @property
    def group(self) -> str:
        """What is never split between training and held-out: the module, or the prompt where there is none."""
        return self.module or f"prompt {hashlib.sha256(self.prompt.encode()).hexdigest()[:16]}"
