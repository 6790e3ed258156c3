"""DoctorScreen."""

from __future__ import annotations

from amigo_local.tui.screens.base import AmigoScreen


class DoctorScreen(AmigoScreen):
    NAME = "doctor"


SCREEN = DoctorScreen
