from __future__ import annotations

import random
import subprocess
import sys
import tracemalloc

import numpy as np

from amigo_local.data.pair import Pair
from amigo_local.data.preferences import Preference
from amigo_local.data.seen_keys import SeenKeys, key_of


def pair(prompt: str, completion: str = "c") -> Pair:
    return Pair(prompt=prompt, completion=completion, source="s")


def test_the_first_of_equal_keys_is_new_within_and_across_batches() -> None:
    draw = random.Random(0)
    keys = [draw.choice((0, (1 << 64) - 1, draw.randrange(5000), draw.randrange(1 << 64))) for _ in range(30_000)]
    known: set[int] = set()
    expected = [key not in known and not known.add(key) for key in keys]  # type: ignore[func-returns-value]
    seen, found, start = SeenKeys(), [], 0
    while start < len(keys):
        size = draw.choice((0, 1, 7, 500, 2000))
        found += seen.add(np.array(keys[start : start + size], np.uint64)).tolist()
        start += size
    assert found == expected
    assert len(seen) == len(known)


def test_a_million_keys_take_24_bytes_each_at_most() -> None:
    draw = np.random.Generator(np.random.PCG64(0))
    seen = SeenKeys()
    tracemalloc.start()
    for _ in range(500):
        assert seen.add(draw.integers(0, 1 << 64, 2000, dtype=np.uint64)).all()
    held, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert held < 9 * len(seen)
    assert peak < 24 * len(seen)


def test_white_space_makes_no_other_pair_and_all_else_does() -> None:
    same = [pair("Add  one\n to x.", "a b"), pair(" Add one to x. ", "a\tb\n")]
    assert len({key_of(item) for item in same}) == 1
    other = [
        pair("Add one to x.", "a b"),
        pair("Add one to x", "a b"),
        pair("Add one to x. a", "b"),
        pair("add one to x.", "a b"),
        pair("Add one to x.\x00a", "b"),
        pair("Add one to x.", "\ud800"),
        Preference(prompt="Add one to x.", completion="a b", rejected="c", source="s"),
        Preference(prompt="Add one to x.", completion="a b", rejected="d", source="s"),
    ]
    assert len({key_of(item) for item in other}) == len(other)


def test_a_key_is_the_same_in_every_process() -> None:
    code = (
        "from amigo_local.data.pair import Pair; from amigo_local.data.seen_keys import key_of; "
        "print(key_of(Pair(prompt='p q', completion='c', source='s')))"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(ran.stdout) == key_of(pair("p q")) == 5852252966712578524
