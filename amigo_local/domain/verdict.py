"""Verdict: what became of a program that was run to judge an answer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import msgspec

Reason = Literal["passed", "failed", "timeout", "crashed", "no-nonce"]


class Verdict(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    passed: bool
    reason: Reason
    detail: str = ""
    """What a failed program raised: `TypeError: message (line 7: …)`."""


Judge = Callable[[str], Verdict]
"""Runs a Python program to its end where it can do no harm; it passes when it ends normally."""
