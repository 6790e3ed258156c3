"""whereabouts: the screen on which one does what a hint says in the words of the command line."""

from __future__ import annotations

import re

_COMMAND = re.compile(r"\bamigo-local ([a-z]+)\b|(--set )")
_SCREENS = {
    "models": ("models", "pull", "unpack", "register"),
    "recipe": ("recipes", "plan", "--set "),
    "loop": ("run", "demo", "prepare", "quantize", "train", "export"),
    "compare": ("chat",),
    "evaluate": ("evaluate", "answers"),
    "runs": ("runs",),
    "doctor": ("doctor",),
}


def screen_for(hint: str) -> str:
    """Its name, by the first command that has one; empty where none has."""
    for found in _COMMAND.finditer(hint):
        for screen, words in _SCREENS.items():
            if (found[1] or found[2]) in words:
                return screen
    return ""
