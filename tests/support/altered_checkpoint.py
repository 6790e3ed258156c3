"""Checkpoints with other weights: what tuning, or another training, would have left."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import safetensors.numpy

Array = npt.NDArray[np.float32]
Weights = dict[str, Array]


def altered(checkpoint: Path, out: Path, change: Callable[[Weights], Weights | None]) -> Path:
    """A copy of a float32 checkpoint, written by safetensors, with some of its weights changed."""
    shutil.copytree(checkpoint, out)
    weights = safetensors.numpy.load_file(out / "model.safetensors")
    weights = change(weights) or weights
    safetensors.numpy.save_file(weights, out / "model.safetensors", metadata={"format": "pt"})
    return out


def low_rank(weight: Array, relative: float, seed: int = 0) -> Array:
    """What LoRA of rank 4 adds, scaled to that share of the weight's size."""
    random = np.random.default_rng(seed)
    delta = random.standard_normal((weight.shape[0], 4)) @ random.standard_normal((4, weight.shape[1]))
    return (weight + delta * (relative * np.linalg.norm(weight) / np.linalg.norm(delta))).astype(np.float32)
