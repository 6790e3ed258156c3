"""The Doctor screen, on this machine and with pinned findings."""

from __future__ import annotations

import asyncio
from pathlib import Path

from amigo_local.domain.events import Column, Note, Table
from amigo_local.tui.app import AmigoApp
from amigo_local.tui.screens.doctor import Finding
from tests.support.pinned_session import PinnedSession
from tests.support.tui_driving import driven, screen_text, until


def test_it_says_what_this_machine_has_and_what_fits(tmp_path: Path) -> None:
    async def body() -> None:
        async with driven(tmp_path, screen="doctor", size=(120, 50)) as (app, pilot):
            await until(pilot, lambda: "What fits" in screen_text(app))
            shown = screen_text(app)
            for text in ("Ollama is switched off", "processor cores", "llama-cpp-python", "gemma-3-12b"):
                assert text in shown
            assert "looking…" not in shown

    asyncio.run(body())


def test_problems_come_first_and_their_fix_is_copied(tmp_path: Path) -> None:
    notes = [
        Note("all good here", "good"),
        Note("no server [answers]", "problem", "ollama serve"),
        Note("no sandbox", "problem", "apt install bubblewrap"),
        Note("2 things to mend", "warning"),
    ]
    table = Table("Machine", (Column("what"), Column("found")), (("disk", "x" * 300),))

    async def body() -> None:
        app = AmigoApp(PinnedSession(tmp_path, {"doctor": lambda _: [table, *notes]}), screen="doctor")
        async with app.run_test(size=(80, 24)) as pilot:
            await until(pilot, lambda: "2 things to mend" in screen_text(app))
            assert [finding.note.text for finding in app.screen.query(Finding)] == [
                "no server [answers]",
                "no sandbox",
                "all good here",
            ]
            assert max(map(len, screen_text(app).splitlines())) <= 80
            await pilot.press("c")
            assert app.clipboard == "ollama serve"
            await pilot.press("down", "enter")
            assert app.clipboard == "apt install bubblewrap"
            session = app.session
            assert isinstance(session, PinnedSession)
            session._answers["doctor"] = lambda _: []
            await pilot.press("f5")
            await pilot.pause()
            assert "no sandbox" in screen_text(app)  # the old stays until there is something new

    asyncio.run(body())
