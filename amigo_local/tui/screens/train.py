"""TrainScreen."""

from __future__ import annotations

from amigo_local.tui.screens.base import AmigoScreen


class TrainScreen(AmigoScreen):
    NAME = "train"


SCREEN = TrainScreen
