from __future__ import annotations

import pytest

from amigo_local.stages import stage_names
from amigo_local.tui.screens.base import SCREENS
from amigo_local.tui.whereabouts import _SCREENS, screen_for


@pytest.mark.parametrize(
    ("hint", "screen"),
    [
        ("amigo-local pull gemma3:12b", "models"),
        ("`amigo-local base`, then amigo-local unpack ollama:a", "models"),
        ("--set train.lora.rank=8 would fit; or amigo-local plan --vram 24G", "recipe"),
        ("amigo-local runs resume 20260101-000000-run", "runs"),
        ("the amigo-local program", ""),
        ("check the path", ""),
    ],
)
def test_a_hint_of_the_command_line_is_done_on_a_screen(hint: str, screen: str) -> None:
    assert screen_for(hint) == screen


def test_only_verbs_and_screens_that_exist_are_named() -> None:
    assert set(_SCREENS) <= set(SCREENS)
    assert {word for words in _SCREENS.values() for word in words} - {"--set "} <= set(stage_names())
