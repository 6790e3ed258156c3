"""run: the whole loop of one recipe or of a chain; skips what is done, resumes what was cut."""

from __future__ import annotations

from amigo_local.engine.contract import ChainRequest, Stage
from amigo_local.stages._loop import LAST, chain_until

STAGE = Stage(
    "run",
    "The whole loop of a recipe or chain: skips what is done, resumes what was cut.",
    ChainRequest,
    steps=chain_until(LAST),
    one_step=lambda request: isinstance(request, ChainRequest) and request.next,
)
