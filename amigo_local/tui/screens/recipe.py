"""RecipeScreen."""

from __future__ import annotations

from amigo_local.tui.screens.base import AmigoScreen


class RecipeScreen(AmigoScreen):
    NAME = "recipe"


SCREEN = RecipeScreen
