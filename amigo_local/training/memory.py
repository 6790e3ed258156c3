"""What training needs and whether it fits, for those who don't want the whole plan."""

from __future__ import annotations

from amigo_local.domain.machine import Machine
from amigo_local.domain.memory_plan import Batching
from amigo_local.domain.plan import Needs
from amigo_local.domain.recipe import TrainSettings
from amigo_local.domain.shape import ModelShape
from amigo_local.training.memory_formula import Job
from amigo_local.training.memory_plan import DEFAULT_TABLE_TYPE, choose_plan, fitted, needs


def estimate_training(
    shape: ModelShape,
    settings: TrainSettings,
    max_length_tokens: int,
    machine: Machine,
    *,
    samples: int | None = None,
    mean_length_tokens: float | None = None,
) -> tuple[Needs, Batching]:
    """Predicted peaks and the batching of the plan that fits, of the smallest one when none does.

    Raises InputError for settings that contradict the model or each other.
    """
    plan = fitted(Job(shape, settings, max_length_tokens, DEFAULT_TABLE_TYPE), machine).plan
    return needs(plan, settings, samples=samples, mean_length_tokens=mean_length_tokens), plan.batching


def check_fits(shape: ModelShape, settings: TrainSettings, max_length_tokens: int, machine: Machine) -> None:
    """Raises InputError naming the resource that binds, and the nearest change that fits."""
    choose_plan(shape, settings, max_length_tokens, machine)
