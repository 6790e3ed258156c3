"""A plan's memory as stacked bars: what takes which part of VRAM, RAM and disk, against what there is."""

from __future__ import annotations

from collections.abc import Iterator

from amigo_local.domain.memory_plan import MemoryPlan, Part
from amigo_local.domain.units import format_size

WIDTH = 60
LETTERS = "abcdefghijklmnopqrstuvwxyz"
FREE, OVER = "·", "!"
Resource = tuple[str, tuple[Part, ...], int]
"""Its name, what takes which part of it, and the budget in bytes."""


def resources(plan: MemoryPlan) -> list[Resource]:
    """Those of which the plan takes something."""
    every = (
        ("VRAM", plan.vram, plan.vram_budget_bytes),
        ("RAM", plan.ram, plan.ram_budget_bytes),
        ("disk", plan.disk, plan.disk_budget_bytes),
    )
    return [resource for resource in every if resource[1]]


def memory_bars(plan: MemoryPlan, width: int = WIDTH) -> list[str]:
    """Lines of text. In a bar (`width` characters) each letter is one part, `·` is free, `!` marks what is over the
    budget."""
    return [line for name, parts, budget in resources(plan) for line in _lines(name, parts, budget, width)]


def _lines(name: str, parts: tuple[Part, ...], budget: int, width: int) -> Iterator[str]:
    total = sum(part.nbytes for part in parts)
    yield f"{name:<4} {format_size(total)} of {format_size(budget)}"
    yield f"     [{stacked_bar(parts, budget, width)}]"
    longest = max(len(part.name) for part in parts)
    for letter, part in zip(LETTERS, parts, strict=False):
        yield f"     {letter} {part.name.ljust(longest)}  {format_size(part.nbytes):>10}"


def stacked_bar(parts: tuple[Part, ...], budget: int, width: int = WIDTH) -> str:
    """`aaabbbc···`: each part's share of the budget, or of the whole where that is more; then it ends in `!`."""
    total = sum(part.nbytes for part in parts)
    scale = width / max(total, budget, 1)
    bar, end = "", 0.0
    for letter, part in zip(LETTERS, parts, strict=False):
        end += part.nbytes * scale
        bar += letter * (round(end) - len(bar))
    if total > budget:
        fitting = int(budget * scale)
        return bar[:fitting] + OVER * (width - fitting)
    return bar.ljust(width, FREE)
