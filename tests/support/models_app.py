"""The app on its Models screen, and what a person sees there."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

from textual.pilot import Pilot

from amigo_local.domain.settings import ProgramSettings
from amigo_local.tui.app import AmigoApp
from amigo_local.tui.asking import Asked
from amigo_local.tui.screens.models import ModelsScreen
from amigo_local.tui.session import Session
from amigo_local.tui.widgets.failure_bar import FailureBar
from amigo_local.tui.widgets.model_details import ModelDetails
from amigo_local.tui.widgets.model_facts import ModelFacts
from amigo_local.tui.widgets.work_view import WorkView
from tests.support.tui_driving import headless, until


class ModelsApp(AmigoApp):
    """Begins here; the machine is measured when a test wants it."""

    DEFAULT_MODE = "models"

    def _measure(self) -> None:
        return

    @property
    def models(self) -> ModelsScreen:
        return next(screen for screen in self.screen_stack if isinstance(screen, ModelsScreen))

    @property
    def refs(self) -> list[str]:
        return [str(row[0]) for row in self.models.table.shown]

    @property
    def details(self) -> ModelDetails:
        return self.models.details

    @property
    def facts(self) -> dict[str, str]:
        return dict(self.details.query_one(ModelFacts).facts)

    @property
    def offered(self) -> set[str]:
        names = ("unpack", "register", "remove", "compare", "refine", "cancel")
        return {name for name in names if self.models.check_action(name, ())}

    @property
    def work_shown(self) -> str:
        return self.models.query_one(WorkView).text

    def has_failed(self) -> str:
        bar = self.models.query_one(FailureBar)
        return str(bar.content) if bar.has_class("shown") else ""


class CountingSession(Session):
    """Keeps what was asked."""

    def __init__(self, home: Path, settings: ProgramSettings) -> None:
        super().__init__(home, settings)
        self.asked: list[dict[str, Any]] = []

    def stream(self, verb: str, params: Mapping[str, Any]) -> Asked:
        self.asked.append({"verb": verb, **params})
        return super().stream(verb, params)


@contextlib.asynccontextmanager
async def on_screen(
    session: Session, size: tuple[int, int] = (120, 40)
) -> AsyncIterator[tuple[ModelsApp, Pilot[None]]]:
    app = ModelsApp(session)
    try:
        async with headless(app, size) as pilot:
            yield app, pilot
    finally:
        await session.close()


async def listed(app: ModelsApp, pilot: Pilot[None]) -> None:
    await until(pilot, lambda: bool(app.screen_stack) and bool(app.models.query(ModelDetails)) and bool(app.refs))


async def go_to(app: ModelsApp, pilot: Pilot[None], ref: str) -> None:
    """Puts the cursor there and waits until its details are shown."""
    assert app.models.table.point_at(ref), app.refs
    await until(pilot, lambda: app.facts.get("reference") == ref or app.facts.get("files") == ref)
