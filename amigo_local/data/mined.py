"""Mined: what a source or a filter gives back, with how much it left out and why."""

from __future__ import annotations

import msgspec

from amigo_local.data.pair import Pair


class Mined(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    pairs: tuple[Pair, ...]
    left_out: dict[str, int] = {}
    """Reason -> how many."""
