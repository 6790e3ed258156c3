"""Drives the app headlessly on a real home, and waits for what is to be seen rather than for time to pass."""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from unittest.mock import patch

import psutil
import textual.app
import textual.pilot
from textual.app import App
from textual.pilot import Pilot

from amigo_local.domain.settings import OllamaSettings, ProgramSettings
from amigo_local.tui.app import AmigoApp
from amigo_local.tui.session import Session


def runner_processes() -> list[psutil.Process]:
    """Of this process: a session's other tests may have started servers."""
    found = []
    for child in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):
            if {"amigo_local.runner_process", "amigo_local.worker"} & set(child.cmdline()):
                found.append(child)
    return found


def runner_of(home: Path) -> psutil.Process | None:
    """The process that a detached run of that home goes on in."""
    for process in psutil.process_iter(["cmdline"]):
        with contextlib.suppress(psutil.Error):
            if "amigo_local.runner_process" in " ".join(process.info["cmdline"] or ()) and any(
                str(home / "runs") in file.path for file in process.open_files()
            ):
                return process
    return None


OFFLINE = ProgramSettings(ollama=OllamaSettings(use=False))


async def until(pilot: Pilot[None], condition: Callable[[], object], seconds: float = 90) -> None:
    """Until it is so and all that comes with it, what is drawn too. Raises TimeoutError with what was on the screen."""
    try:
        async with asyncio.timeout(seconds):
            while not condition():
                await pilot.pause(0.02)
            await pilot.pause()
    except TimeoutError as error:
        raise TimeoutError(f"not within {seconds} s; the screen shows:\n{screen_text(pilot.app)}") from error


async def settled(pilot: Pilot[None]) -> str:
    """The picture, once nothing is drawn any more, with one name for all terminals."""
    last, same = "", 0
    while same < 4:
        await pilot.pause(0.05)
        now = re.sub(r"terminal-\d+", "terminal", pilot.app.export_screenshot())
        same, last = (same + 1 if now == last else 0), now
    return last


def screen_text(app: object) -> str:
    """What a person reads, line by line."""
    assert isinstance(app, App)
    width, height = app.size
    lines = app.screen._compositor.render_strips(app.size)
    return "\n".join(strip.text.rstrip() for strip in lines[:height]) if width else ""


async def wait_for_idle(min_sleep: float = 0.02, max_sleep: float = 1.0) -> None:
    """Takes the place of Textual's, which calls a process idle that uses no processor: one that gets none is none.

    Here the loop had nothing to do twice, longer apart than a screen takes to be drawn again."""
    loop = asyncio.get_running_loop()
    start, idle = loop.time(), 0
    while idle < 2 or loop.time() - start < min_sleep:
        await asyncio.sleep(0.02)
        idle = 0 if vars(loop)["_ready"] else idle + 1
        if loop.time() - start >= max_sleep and not idle:
            break


@contextlib.asynccontextmanager
async def headless(app: App[None], size: tuple[int, int] = (80, 24)) -> AsyncIterator[Pilot[None]]:
    """As Textual's `run_test`; but its workers end before its screens are taken apart, as they do when a person quits,
    and keys that are on their way arrive."""
    with (
        patch.object(textual.app, "wait_for_idle", wait_for_idle),
        patch.object(textual.pilot, "wait_for_idle", wait_for_idle),
    ):
        async with _run(app, size) as pilot:
            yield pilot


@contextlib.asynccontextmanager
async def _run(app: App[None], size: tuple[int, int]) -> AsyncIterator[Pilot[None]]:
    async with app.run_test(size=size) as pilot:
        try:
            await until(pilot, lambda: app.screen.is_mounted)
            yield pilot
            await pilot.pause()
        finally:
            app.workers.cancel_all()


@contextlib.asynccontextmanager
async def driven(
    home: Path, settings: ProgramSettings = OFFLINE, size: tuple[int, int] = (120, 40), screen: str = ""
) -> AsyncIterator[tuple[AmigoApp, Pilot[None]]]:
    """The app on that home with real processes behind it; they end with the block, runs don't."""
    session = Session(home, settings)
    app = AmigoApp(session, screen=screen)
    try:
        async with headless(app, size) as pilot:
            yield app, pilot
    finally:
        await session.close()
