"""Plan: what will run, what each stage needs, what is already done, and what binds."""

from __future__ import annotations

from typing import Literal

import msgspec

from amigo_local.domain.artifact import Artifact
from amigo_local.domain.memory_plan import Batching, MemoryPlan

__all__ = ["Batching", "Needs", "Plan", "PlannedStage"]


class Needs(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Predicted peaks of one stage; seconds None: nothing to predict it from."""

    vram_bytes: int = 0
    ram_bytes: int = 0
    disk_bytes: int = 0
    seconds: float | None = None


class PlannedStage(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    stage: str
    summary: str
    status: Literal["done", "to do"]
    needs: Needs
    artifact: Artifact | None = None
    """What was made, when it is done."""
    of: str = ""
    """Name of the recipe that it belongs to, in a chain of several."""


class Plan(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    recipe: str
    model: str
    stages: tuple[PlannedStage, ...]
    memory: MemoryPlan | None = None
    """How training is fitted to the machine; the smallest plan that there is where none fits."""
    binding: str | None = None
    """The resource that does not suffice (`VRAM: needs … has …`), or None when it fits."""
    nearest: str | None = None
    """The nearest change of the recipe that fits."""
