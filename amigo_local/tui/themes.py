"""Two themes in colours that the colour-blind tell apart (Okabe and Ito, "Color Universal Design", 2008)."""

from __future__ import annotations

from textual.theme import Theme

DARK, LIGHT = "amigo-dark", "amigo-light"

_BLUE, _SKY, _GREEN, _ORANGE, _VERMILLION, _PURPLE = "#0072B2", "#56B4E9", "#009E73", "#E69F00", "#D55E00", "#CC79A7"

THEMES = (
    Theme(
        name=DARK,
        primary=_SKY,
        secondary=_BLUE,
        accent=_ORANGE,
        success="#2FC79A",  # the green and the vermillion a little lighter, for contrast on a dark ground
        warning=_ORANGE,
        error="#FF7A33",
        foreground="#DDE3EA",
        background="#10151B",
        surface="#161D25",
        panel="#202A35",
        dark=True,
        variables={
            "footer-key-foreground": _SKY,
            "border": "#3A4857",
            "series-1": _SKY,
            "series-2": _ORANGE,
            "series-3": "#2FC79A",
            "series-4": _PURPLE,
            "series-5": "#F0E442",
            "series-6": "#FF7A33",
        },
    ),
    Theme(
        name=LIGHT,
        primary=_BLUE,
        secondary=_SKY,
        accent="#B45F00",
        success="#00724F",
        warning="#9A5B00",
        error="#8F1D00",  # as dark as it takes not to be the warning's brown to the colour-blind
        foreground="#1B232C",
        background="#FBFAF7",
        surface="#F3F1EC",
        panel="#E6E3DC",
        dark=False,
        variables={
            "footer-key-foreground": _BLUE,
            "border": "#B4AFA4",
            "series-1": _BLUE,
            "series-2": "#B45F00",
            "series-3": "#00724F",
            "series-4": "#9C3F77",
            "series-5": "#6B6100",
            "series-6": "#8F1D00",
        },
    ),
)
