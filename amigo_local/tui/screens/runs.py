"""RunsScreen."""

from __future__ import annotations

from amigo_local.tui.screens.base import AmigoScreen


class RunsScreen(AmigoScreen):
    NAME = "runs"


SCREEN = RunsScreen
