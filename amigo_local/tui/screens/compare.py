"""CompareScreen."""

from __future__ import annotations

from amigo_local.tui.screens.base import AmigoScreen


class CompareScreen(AmigoScreen):
    NAME = "compare"


SCREEN = CompareScreen
