"""Which pairs are held out, and which are taken when there are too many: by module, by stable hashes."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence

from amigo_local.data.pair import Pair


def held_out_groups(groups: Iterable[str], fraction: float, seed: int) -> frozenset[str]:
    """The groups (modules, or single rows) that are kept away from training.

    Each group is judged by a hash of its own name, so a module stays on its side when others come
    or go. With a fraction above 0 and two groups or more, both sides get at least one.
    """
    ranked = sorted(set(groups), key=lambda group: _position(group, seed))
    if fraction <= 0 or len(ranked) < 2:
        return frozenset()
    below = [group for group in ranked if _position(group, seed) < fraction]
    return frozenset((below or ranked[:1])[: len(ranked) - 1])


def _position(text: str, seed: int) -> float:
    """Uniform in [0, 1), the same on every machine."""
    digest = hashlib.sha256(f"{seed}\n{text}".encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64


def spread_over_groups(pairs: Sequence[Pair], seed: int) -> Iterator[int]:
    """Indices of all pairs, one of each group in turn: any first n are evenly spread over groups."""
    waiting: dict[str, list[int]] = {}
    for index, pair in enumerate(pairs):
        waiting.setdefault(pair.group, []).append(index)
    for indices in waiting.values():
        indices.sort(key=lambda index: _position(f"{pairs[index].name}\n{pairs[index].prompt}", seed), reverse=True)
    order = sorted(waiting, key=lambda group: _position(group, seed))
    while order:
        for group in order:
            yield waiting[group].pop()
        order = [group for group in order if waiting[group]]
