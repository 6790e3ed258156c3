"""run: the whole loop of a recipe; skips what is done, resumes what was cut."""

from __future__ import annotations

from amigo_local.engine.contract import RecipeRequest, Stage
from amigo_local.stages._loop import LAST, chain_until

STAGE = Stage(
    "run",
    "The whole loop of a recipe: skips what is done, resumes what was cut.",
    RecipeRequest,
    steps=chain_until(LAST),
)
