"""Two models of a real Ollama server, chosen and evaluated by keys, with a pause, a cancel and another beginning."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from amigo_local.domain.settings import OllamaSettings, ProgramSettings
from amigo_local.serving.ollama_server import OllamaServer
from amigo_local.serving.templates import family
from amigo_local.tui.screens.evaluate import EvaluateScreen
from amigo_local.tui.screens.pick_row import PickRow
from amigo_local.tui.widgets.measures import MeasureLines
from tests.support.ollama_server import RealOllama
from tests.support.tiny_gguf import write_tiny_llama
from tests.support.tui_driving import driven, screen_text, until

OLD, NEW = "ollama:evaluate-old:latest", "ollama:evaluate-new:latest"


@pytest.fixture
def settings(ollama_server: RealOllama, tmp_path: Path) -> ProgramSettings:
    server = OllamaServer(ollama_server.host)
    for seed, name in ((15, "evaluate-old"), (6, "evaluate-new")):
        gguf = write_tiny_llama(tmp_path / f"{name}.gguf", seed=seed)
        server.create(name, gguf, family("chatml").definition, lambda event: None)
    return ProgramSettings(ollama=OllamaSettings(host=ollama_server.host, store=str(ollama_server.models)))


def test_two_models_are_chosen_paused_cancelled_and_measured_side_by_side(
    settings: ProgramSettings, tmp_path: Path
) -> None:
    async def body() -> None:
        async with driven(tmp_path / "home", settings, screen="evaluate") as (app, pilot):
            screen = app.screen
            assert isinstance(screen, EvaluateScreen)

            async def pick(key: str, name: str) -> None:
                await pilot.press(key)
                await until(pilot, lambda: isinstance(app.screen, PickRow))
                await pilot.press("slash", *name, "enter", "enter")
                await until(pilot, lambda: app.screen is screen)

            await until(pilot, lambda: screen.form.has_focus)
            await pick("m", "evaluate-old")
            await pick("r", "evaluate-new")
            assert screen.state.refs == [OLD, NEW]
            await until(pilot, lambda: "evaluate-old" in screen_text(app) and "evaluate-new" in screen_text(app))
            screen.state.suites = ["humaneval"]  # the others ask what a run has prepared
            await pilot.press("enter")
            await until(pilot, lambda: screen.working and "prompts" in screen_text(app))
            await pilot.press("space")
            await until(pilot, lambda: "‖ paused" in screen_text(app) and "Continue" in screen_text(app))
            await pilot.press("space")
            await until(pilot, lambda: "▶ running" in screen_text(app) and "Pause" in screen_text(app))
            await pilot.press("x")
            await until(pilot, lambda: not screen.working and "■ cancelled" in screen_text(app))
            assert screen.answers is None and not screen.form.disabled
            await pilot.press("e", "end", *["left"] * 9, "up", *["left"] * 9)  # the shortest answers to the fewest
            await until(pilot, lambda: "64 tokens" in screen_text(app) and "8 of 164" in screen_text(app))
            await pilot.press("enter")
            await until(pilot, lambda: screen.answers is not None)
            lines = "\n".join(line.plain for line in screen.query_one(MeasureLines).draw(80))
            assert "evaluate" in lines and "pass@1" in lines, lines
            await until(pilot, lambda: "evaluate-old:latest → evaluate-new:latest" in screen_text(app))
            await until(pilot, lambda: screen.rows.has_focus_within)
            await pilot.press("enter")
            await until(pilot, lambda: screen.opened is not None)
            await until(pilot, lambda: screen_text(app).count("✗") >= 2)  # both answers, and that neither passes

    asyncio.run(body())
