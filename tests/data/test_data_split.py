from __future__ import annotations

from collections import Counter
from itertools import islice

from amigo_local.data.pair import Pair
from amigo_local.data.split import held_out_groups, spread_over_groups

MODULES = [f"module{number}" for number in range(400)]


def test_the_share_of_modules_is_about_the_fraction_and_depends_on_the_seed() -> None:
    held = held_out_groups(MODULES, 0.15, 0)
    assert 0.11 < len(held) / 400 < 0.19
    assert held != held_out_groups(MODULES, 0.15, 1)


def test_a_module_keeps_its_side_when_others_come_or_go() -> None:
    assert held_out_groups(MODULES[:200], 0.15, 0) == held_out_groups(MODULES, 0.15, 0) & set(MODULES[:200])


def test_both_sides_get_something_when_there_are_two_modules() -> None:
    for seed in range(20):
        assert len(held_out_groups(["a", "b"], 0.01, seed)) == 1
        assert len(held_out_groups(["a", "b"], 1.0, seed)) == 1
    assert held_out_groups(["a"], 0.5, 0) == frozenset()
    assert held_out_groups(MODULES, 0.0, 0) == frozenset()


def test_the_split_of_these_names_never_changes() -> None:
    """Pinned: a change here makes every model's held-out modules part of its training."""
    names = ["ast", "base64", "bisect", "calendar", "email", "heapq", "statistics", "textwrap", "tokenize", "zipfile"]
    assert sorted(held_out_groups(names, 0.15, 0)) == ["bisect", "textwrap", "tokenize"]


def test_any_first_n_are_spread_over_modules() -> None:
    pairs = [
        Pair(prompt=str(number), completion="x", source="t", module=module)
        for module, count in (("big", 50), ("small", 2), ("middle", 10))
        for number in range(count)
    ]
    order = list(spread_over_groups(pairs, 0))
    assert sorted(order) == list(range(62))
    assert Counter(pairs[index].module for index in islice(order, 6)) == {"big": 2, "small": 2, "middle": 2}
    assert Counter(pairs[index].module for index in islice(order, 20)) == {"big": 9, "small": 2, "middle": 9}


def test_rows_without_module_are_split_by_their_prompt() -> None:
    one, two = (Pair(prompt="same", completion=text, source="t") for text in "ab")
    assert one.group == two.group != Pair(prompt="other", completion="a", source="t").group
