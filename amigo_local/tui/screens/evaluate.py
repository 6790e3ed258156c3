"""EvaluateScreen."""

from __future__ import annotations

from amigo_local.tui.screens.base import AmigoScreen


class EvaluateScreen(AmigoScreen):
    NAME = "evaluate"


SCREEN = EvaluateScreen
