"""ModelsScreen."""

from __future__ import annotations

from amigo_local.tui.screens.base import AmigoScreen


class ModelsScreen(AmigoScreen):
    NAME = "models"


SCREEN = ModelsScreen
