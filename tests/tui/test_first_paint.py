"""The app is there at once, and its colours can be told apart by whoever looks."""

from __future__ import annotations

import itertools
import math
import subprocess
import sys
from pathlib import Path

import pytest
from textual.color import Color, rgb_to_lab
from textual.theme import Theme

from amigo_local.tui.themes import THEMES
from tests.support.command_line import SCRIPT, environment
from tests.support.pty_program import PtyProgram

Matrix = tuple[tuple[float, float, float], ...]
HEAVY = {"torch", "transformers", "pyarrow", "datasets", "numpy", "httpx", "ollama", "aiohttp"}
# Deuteranopia and protanopia, severity 1.0, on linear RGB: Machado, Oliveira and Fernandes 2009, table 1.
DEUTERANOPIA: Matrix = (
    (0.367322, 0.860646, -0.227968),
    (0.280085, 0.672501, 0.047413),
    (-0.011820, 0.042940, 0.968881),
)
PROTANOPIA: Matrix = ((0.152286, 1.052583, -0.204868), (0.114503, 0.786281, 0.099216), (-0.003882, -0.048116, 1.051998))


@pytest.mark.skipif(sys.platform == "win32", reason="needs a pseudo-terminal")
def test_it_paints_before_anything_heavy_is_imported(tmp_path: Path) -> None:
    code = "import sys, amigo_local.tui.running, amigo_local.tui.screens.loop; print(*sorted(sys.modules))"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert "textual" in loaded and HEAVY & set(loaded) == set()
    with PtyProgram([str(SCRIPT), "tui"], (120, 40), environment(tmp_path)) as app:
        # Loosely, since other tests run beside it; benchmarks/tui.py is for the figure, 0.7 s.
        assert app.wait_for("Recipe: choose one") - app.started < 2.5


def linear(color: Color) -> list[float]:
    return [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in color.normalized]


def contrast(one: Color, other: Color) -> float:
    """WCAG 2.2's."""
    dark, light = sorted(0.2126 * r + 0.7152 * g + 0.0722 * b for r, g, b in (linear(one), linear(other)))
    return (light + 0.05) / (dark + 0.05)


def difference(one: Color, other: Color, seen_by: Matrix) -> float:
    """CIE 1976, as that eye sees them; 2.3 is just noticeable."""

    def lab(color: Color) -> tuple[float, float, float]:
        seen = [sum(a * c for a, c in zip(row, linear(color), strict=True)) for row in seen_by]
        gamma = (
            12.92 * c if c <= 0.0031308 else 1.055 * c ** (1 / 2.4) - 0.055 for c in (min(max(c, 0), 1) for c in seen)
        )
        found = rgb_to_lab(Color(*(round(255 * c) for c in gamma)))
        return found.L, found.a, found.b

    return math.dist(lab(one), lab(other))


@pytest.mark.parametrize("theme", THEMES, ids=lambda theme: theme.name)
def test_colours_that_mean_something_are_read_on_their_ground_and_told_apart_by_the_colour_blind(theme: Theme) -> None:
    generated = theme.to_color_system().generate()
    ground = Color.parse(generated["background"])
    colors = [Color.parse(generated[name]) for name in ("success", "warning", "error", "primary")]
    assert min(contrast(color, ground) for color in colors) >= 4.5  # WCAG 2.2, 1.4.3
    for seen_by in (DEUTERANOPIA, PROTANOPIA):
        for one, other in itertools.combinations(colors, 2):
            assert difference(one, other, seen_by) > 10, (one, other)
