"""PromptSet: the prompts of a file, one after the other."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path

from amigo_local.evaluation.prompt_sets import read_prompts
from amigo_local.tui.saved_state import PROMPTS_KEPT

CHARACTERS_KEPT = 1_000_000
"""Of the prompts that come back after a restart."""


class PromptSet:
    """`place` counts from 0 and stays within the set; `given` is the prompt that was asked for last."""

    def __init__(self) -> None:
        self.path = ""
        self.prompts: tuple[str, ...] = ()
        self.place = 0
        self.given = ""

    async def read(self, path: str, place: int = 0) -> None:
        """Raises InputError when there are no prompts in it; the set then stays what it was."""
        self.prompts = await asyncio.to_thread(read_prompts, Path(path))
        self.path, self.given = path, ""
        self.place = max(0, min(place, len(self.prompts) - 1))

    def step(self, by: int) -> str:
        """The next prompt, or the one before; at first the one at `place`."""
        if self.given:
            self.place = max(0, min(self.place + by, len(self.prompts) - 1))
        self.given = self.prompts[self.place]
        return self.given

    def __str__(self) -> str:
        return f"prompt {self.place + 1} of {len(self.prompts)}" if self.prompts else ""


def newest_prompts(prompts: Sequence[str], count: int = PROMPTS_KEPT, characters: int = CHARACTERS_KEPT) -> list[str]:
    """As many of the last ones as are at most `count`, and together at most so many characters."""
    kept: list[str] = []
    for prompt in reversed(prompts[-count:]):
        characters -= len(prompt)
        if characters < 0:
            break
        kept.append(prompt)
    return kept[::-1]
