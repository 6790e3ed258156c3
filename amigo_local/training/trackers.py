"""Trackers that are told the metrics besides our own journal: those that the recipe names, and no other."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path
from typing import Any, Literal

from amigo_local.domain.errors import InputError

Tracker = Literal["trackio", "tensorboard", "wandb"]
_MODULES: dict[Tracker, tuple[str, ...]] = {
    "trackio": ("trackio",),
    "tensorboard": ("tensorboard", "tensorboardX"),  # either will do: transformers' TensorBoardCallback
    "wandb": ("wandb",),
}


def check_trackers(report_to: tuple[Tracker, ...]) -> None:
    """Raises InputError, before any work, when a tracker that is asked for isn't installed."""
    for name in report_to:
        if not any(importlib.util.find_spec(module) for module in _MODULES[name]):
            raise InputError(
                f"train.report_to names {name}, which is not installed",
                f"pip install -c constraints.txt {name}, or leave it out: the metrics are in the journal anyway",
            )


def tracker_callbacks(report_to: tuple[Tracker, ...], folder: Path) -> list[Any]:
    """transformers' own callbacks, to be added after EventReporter, which completes the log lines that they pass on.

    folder: TensorBoard's files go to `folder/tensorboard` (else they would lie among the checkpoints, and be removed
    with them), unless TENSORBOARD_LOGGING_DIR says otherwise. The trainer itself gets `report_to="none"`.
    """
    if not report_to:
        return []
    from transformers.integrations.integration_utils import get_reporting_integration_callbacks

    if "trackio" in report_to:
        os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")  # trackio imports gradio, which reports its use
    callbacks = [make() for make in get_reporting_integration_callbacks(list(report_to))]
    for callback in callbacks:
        if hasattr(callback, "logging_dir") and callback.logging_dir is None:
            callback.logging_dir = str(folder / "tensorboard")
    return callbacks
