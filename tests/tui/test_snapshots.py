"""How every screen looks, small and roomy, with pinned data. After a change that is meant: `--snapshot-update`."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from textual.pilot import Pilot

from amigo_local.domain.events import GenerationFinished, Note, TokenGenerated
from amigo_local.tui.app import AmigoApp
from amigo_local.tui.screens.base import SCREENS
from amigo_local.tui.themes import DARK, LIGHT
from tests.support.pinned_session import PinnedSession
from tests.support.tui_driving import settled

ANSWERS = (
    "To add two numbers we first think about what addition is.\n\n```python\ndef add(a, b):\n    return a + b\n```\n",
    "```python\ndef add(a: int, b: int) -> int:\n    return a + b\n```\n",
)


def chat(params: object) -> list[TokenGenerated | GenerationFinished | Note]:
    said: list[TokenGenerated | GenerationFinished | Note] = [
        Note("both don't fit: 2 x 7.3 GiB of 5.2 GiB free VRAM: one after the other")
    ]
    for side, text in enumerate(ANSWERS):
        said.append(TokenGenerated(side, 0, text))
        said.append(
            GenerationFinished(
                side=side, prompt_index=0, model=("amigo-reasoner:12b", "amigo-coder:12b")[side], prompt_tokens=18,
                answer_tokens=(61, 34)[side], load_seconds=6.2, prompt_seconds=0.4, answer_seconds=(5.1, 2.8)[side],
                stop_reason="stop", first_token_seconds=0.5, tokens_before_code=(22, 0)[side],
            )
        )  # fmt: skip
    return said


@pytest.fixture(autouse=True)
def pinned_time_zone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TZ", "UTC")
    time.tzset()


@pytest.mark.parametrize(
    ("size", "theme"),
    [((80, 24), DARK), ((120, 40), DARK), ((120, 40), LIGHT)],
    ids=["80x24", "120x40", "120x40-light"],
)
@pytest.mark.parametrize("name", list(SCREENS))
def test_screen(name: str, size: tuple[int, int], theme: str, tmp_path: Path, snap_compare: object) -> None:
    async def before(pilot: Pilot[None]) -> None:
        app = pilot.app
        assert isinstance(app, AmigoApp)
        app.action_show_screen(name)
        await settled(pilot)
        if name == "compare":
            await pilot.press(*"Add two numbers", "enter")
            await settled(pilot)

    session = PinnedSession(tmp_path, {"chat": chat})  # type: ignore[dict-item]  # a narrower list
    session.saved.theme = theme
    session.saved.compare.left, session.saved.compare.right = "amigo-reasoner:12b", "amigo-coder:12b"
    app = AmigoApp(session)
    app.animation_level = "none"
    assert snap_compare(app, terminal_size=size, run_before=before)  # type: ignore[operator]  # ships no types
