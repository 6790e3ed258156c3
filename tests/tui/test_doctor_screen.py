"""The Doctor screen, on this machine and with pinned findings."""

from __future__ import annotations

import asyncio
from pathlib import Path

from rich.cells import cell_len

from amigo_local.domain.events import AnyEvent, Column, Note, Table
from amigo_local.tui.app import AmigoApp
from amigo_local.tui.screens.doctor import Finding
from amigo_local.tui.widgets.facts import Facts
from tests.support.pinned_session import PinnedSession
from tests.support.tui_driving import driven, headless, screen_text, until


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
        async with headless(app, (80, 24)) as pilot:
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


def test_everything_is_reached_by_keys_where_nothing_is_to_be_mended(tmp_path: Path) -> None:
    rows = tuple((f"package {place}", "1.0") for place in range(60))
    events: list[AnyEvent] = [
        Table("Packages", (Column("package"), Column("version")), rows),
        Note("all in place", "good"),
    ]

    async def body() -> None:
        app = AmigoApp(PinnedSession(tmp_path, {"doctor": lambda _: events}), screen="doctor")
        async with headless(app, (80, 24)) as pilot:
            await until(pilot, lambda: "package 3" in screen_text(app))
            assert "package 59" not in screen_text(app)
            await pilot.press("end")
            await until(pilot, lambda: "package 59" in screen_text(app))
            await pilot.press("f5")
            await pilot.pause(0.2)
            assert "package 59" in screen_text(app)  # what is read stays where it is
            await pilot.press("home")
            await until(pilot, lambda: "Packages" in screen_text(app))
            await pilot.press("down", "down")
            await until(pilot, lambda: "Packages" not in screen_text(app))
            await pilot.press("pagedown")
            await until(pilot, lambda: "package 30" in screen_text(app))
            await pilot.press("7")
            await until(pilot, lambda: app.screen.query("RunDetails").first() is not None)

    asyncio.run(body())


def test_a_look_that_breaks_off_leaves_what_was_found_and_the_chosen_fix(tmp_path: Path) -> None:
    table = Table("Machine", (Column("what"), Column("found")), (("disk", "180 GiB"),))
    whole = [
        table,
        Note("no server", "problem", "start it"),
        Note("no sandbox", "problem", "add it"),
        Note("2 to mend"),
    ]
    says: list[list[AnyEvent]] = [[table], [*whole], [table], [*whole]]
    looks = iter(says)

    async def body() -> None:
        app = AmigoApp(PinnedSession(tmp_path, {"doctor": lambda _: next(looks)}), screen="doctor")
        async with headless(app, (80, 24)) as pilot:
            await until(pilot, lambda: "wasn't finished" in screen_text(app) and "180 GiB" in screen_text(app))
            await pilot.press("f5")
            await until(pilot, lambda: "2 to mend" in screen_text(app))
            await pilot.press("down")
            await pilot.press("f5")
            await until(pilot, lambda: "wasn't finished" in screen_text(app))
            assert "no sandbox" in screen_text(app)
            await pilot.press("f5")
            await until(pilot, lambda: "2 to mend" in screen_text(app))
            await pilot.press("c")
            assert app.clipboard == "add it"

    asyncio.run(body())


def test_a_long_last_cell_folds_beside_its_row_or_below_it_and_may_be_spared() -> None:
    columns = (Column("model"), Column("RAM", "bytes"), Column("fits now"))
    why = "no: it needs 9.3 GiB of VRAM, and 5.2 GiB are free"
    table = Table("What fits", columns, (("gemma-3-12b", 9 << 30, why), ("gemma-3-1b", 5 << 30, "yes")))
    roomy, narrow, spared = (
        [line.plain.rstrip() for line in Facts(table, spare=spare).draw(width)]
        for width, spare in ((60, False), (34, False), (34, True))
    )
    assert roomy[2] == "gemma-3-12b  9.0 GiB  no: it needs 9.3 GiB of VRAM, and 5.2"
    assert roomy[3].strip() == "GiB are free"
    assert narrow[2:] == [
        "gemma-3-12b  9.0 GiB",
        "    no: it needs 9.3 GiB of VRAM,",
        "    and 5.2 GiB are free",
        "gemma-3-1b   5.0 GiB  yes",
    ]
    assert spared[2:] == ["gemma-3-12b  9.0 GiB", "gemma-3-1b   5.0 GiB"]
    assert all(cell_len(line) <= 34 for line in narrow + spared)
