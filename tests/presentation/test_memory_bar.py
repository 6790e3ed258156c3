"""Stacked bars of a memory plan."""

from __future__ import annotations

from amigo_local.domain.memory_plan import Batching, MemoryPlan, Part
from amigo_local.presentation.memory_bar import memory_bars, stacked_bar


def test_a_part_takes_its_share_of_the_budget() -> None:
    parts = (Part("weights", 50), Part("adapter", 25))
    assert stacked_bar(parts, 100, width=20) == "a" * 10 + "b" * 5 + "·" * 5
    assert stacked_bar(parts, 75, width=6) == "aaaabb"


def test_small_parts_lose_no_width_to_rounding() -> None:
    parts = tuple(Part(str(i), 1) for i in range(7))
    bar = stacked_bar(parts, 7, width=60)
    assert len(bar) == 60 and set(bar) == set("abcdefg")
    assert max(bar.count(letter) for letter in "abcdefg") - min(bar.count(letter) for letter in "abcdefg") <= 1


def test_what_is_over_the_budget_is_marked() -> None:
    assert stacked_bar((Part("weights", 200),), 100, width=10) == "aaaaa!!!!!"
    assert stacked_bar((), 0, width=4) == "····"


def test_resources_without_parts_are_left_out() -> None:
    plan = MemoryPlan(
        device="cpu",
        batching=Batching(micro_batch=1, accumulation=8),
        max_length_tokens=256,
        optimizer="adamw_torch",
        recompute=False,
        ram=(Part("process", 512 << 20), Part("base", 512 << 20)),
        ram_budget_bytes=2 << 30,
    )
    assert memory_bars(plan) == [
        "RAM  1.0 GiB of 2.0 GiB",
        f"     [{'a' * 15}{'b' * 15}{'·' * 30}]",
        "     a process   512.0 MiB",
        "     b base      512.0 MiB",
    ]
