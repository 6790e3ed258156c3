"""Chooses the problems that a model is asked: the same number of each source, evenly spread over modules."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice

from amigo_local.data.pair import Pair
from amigo_local.data.split import spread_over_groups

MOST_READ = 50_000
"""Of one source; a table of millions of rows isn't read to its end to choose a few hundred of them."""


def choose_problems(sources: Sequence[tuple[Iterable[Pair], int | None]], count: int, seed: int) -> tuple[Pair, ...]:
    """At most `count` problems with different requests; of each source (pairs, its limit) one in turn."""
    waiting = [islice(_spread(pairs, seed), limit) for pairs, limit in sources]
    chosen: dict[str, Pair] = {}
    while waiting and len(chosen) < count:
        for problems in list(waiting):
            problem = next((each for each in problems if each.prompt not in chosen), None)
            if problem is None:
                waiting.remove(problems)
            elif len(chosen) < count:
                chosen[problem.prompt] = problem
    return tuple(chosen.values())


def _spread(pairs: Iterable[Pair], seed: int) -> Iterator[Pair]:
    known = [_single(pair) for pair in islice(pairs, MOST_READ)]
    return (known[index] for index in spread_over_groups(known, seed))


def _single(pair: Pair) -> Pair:
    """Of a pair of answers, the request with the better one."""
    return Pair(**{name: getattr(pair, name) for name in Pair.__struct_fields__})
