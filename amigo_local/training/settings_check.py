"""What training settings ask for that can't be, told before anything is made."""

from __future__ import annotations

from amigo_local.domain.errors import InputError
from amigo_local.domain.recipe import TrainSettings
from amigo_local.training.trackers import check_trackers


def check_settings(settings: TrainSettings) -> None:
    """Raises InputError for settings that contradict each other, or a tracker that isn't installed. No torch."""
    check_trackers(settings.report_to)
    if settings.keep_best and settings.evaluate_every_steps is None:
        raise InputError(
            "train.keep_best needs evaluations to tell the best by, and train.evaluate_every_steps is not set",
            f"set train.evaluate_every_steps, for example to {settings.checkpoint_every_steps}",
        )
