"""Which pairs are held out, and which are taken when there are too many: by module, by stable hashes."""

from __future__ import annotations

import hashlib
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from amigo_local.data.pair import Pair

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

POSITIONS = 2**64


def position(text: str, seed: int) -> int:
    """Uniform in [0, 2**64), the same on every machine. Stands for a group: among a million two meet once in 10**7."""
    return int.from_bytes(hashlib.sha256(f"{seed}\n{text}".encode()).digest()[:8], "big")


def place_in_group(pair: Pair, seed: int) -> int:
    """Where a pair stands among those of its group, when not all are taken."""
    return position(f"{pair.name}\n{pair.prompt}", seed)


def held_out_groups(groups: Iterable[str], fraction: float, seed: int) -> frozenset[str]:
    """The groups (modules, or single rows) that are kept away from training.

    Each group is judged by a hash of its own name, so a module stays on its side when others come
    or go. With a fraction above 0 and two groups or more, both sides get at least one.
    """
    named = {position(group, seed): group for group in groups}
    ranked = sorted(named)
    return frozenset(named[at] for at in ranked[: count_held_out(ranked, fraction)])


def count_held_out(ranked: Sequence[int] | NDArray[np.uint64], fraction: float) -> int:
    """So many of the groups are held out, from the first; `ranked` are their positions, ascending, each once."""
    if fraction <= 0 or len(ranked) < 2:
        return 0
    positions: Any = ranked
    below = bisect_left(positions, fraction, key=lambda at: int(at) / POSITIONS)
    return min(max(below, 1), len(ranked) - 1)


def spread_over_groups(pairs: Sequence[Pair], seed: int) -> Iterator[int]:
    """Indices of all pairs, one of each group in turn: any first n are evenly spread over groups."""
    import numpy as np

    groups = np.array([position(pair.group, seed) for pair in pairs], np.uint64)
    places = np.array([place_in_group(pair, seed) for pair in pairs], np.uint64)
    return (int(index) for index in spread_order(groups, places))


def spread_order(groups: NDArray[np.uint64], places: NDArray[np.uint64]) -> NDArray[np.intp]:
    """The same from (rows,) positions of groups, and places in them."""
    import numpy as np

    by_group = np.lexsort((places, groups))
    sorted_groups = groups[by_group]
    begins = np.flatnonzero(np.append(True, sorted_groups[1:] != sorted_groups[:-1])) if len(groups) else by_group
    sizes = np.diff(np.append(begins, len(groups)))
    turns = np.arange(len(groups)) - np.repeat(begins, sizes)
    order: NDArray[np.intp] = by_group[np.lexsort((sorted_groups, turns))]
    return order
