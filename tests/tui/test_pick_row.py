from __future__ import annotations

import asyncio
from pathlib import Path

from amigo_local.domain.events import Column, Table
from amigo_local.tui.app import AmigoApp
from amigo_local.tui.screens.pick_row import PickRow
from tests.support.pinned_session import PinnedSession
from tests.support.tui_driving import headless, until

ROWS = Table("t", (Column("model"),), (("model-old",), ("model-new",), ("other",)))


def test_keys_that_come_at_once_filter_and_choose(tmp_path: Path) -> None:
    async def body() -> None:
        app = AmigoApp(PinnedSession(tmp_path), screen="runs")
        async with headless(app, (120, 40)) as pilot:

            async def chosen_by(*keys: str) -> str | None:
                answers: list[str | None] = []
                app.push_screen(PickRow("Which?", ROWS, "model"), answers.append)
                await until(pilot, lambda: isinstance(app.screen, PickRow), 10)
                await pilot.press(*keys)
                await until(pilot, lambda: answers, 10)
                return answers[0]

            assert await chosen_by("slash", *"other", "enter", "enter") == "other"
            assert await chosen_by("down", "enter") == "model-new"

    asyncio.run(body())
