"""Exports in one call, and what a GGUF's tensors hold by gguf-py's reading."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np

from amigo_local.domain.events import Emit
from amigo_local.domain.recipe import Quant
from amigo_local.weights.export import export
from amigo_local.weights.export_plan import plan_export


def run(base: Path, adapter: Path | None, out: Path, quant: Quant, emit: Emit, **settings: object) -> dict[str, object]:
    """Plans and exports; `settings` go where they belong."""
    planning = {key: settings.pop(key) for key in ("checkpoint_dir", "like_llama_cpp") if key in settings}
    plan = plan_export(base, adapter, quant, out.parent, **planning)  # type: ignore[arg-type]
    return dict(export(plan, out, emit, **settings))  # type: ignore[arg-type]


def decoded(path: Path) -> dict[str, np.ndarray]:
    return {
        tensor.name: gguf.quants.dequantize(tensor.data, tensor.tensor_type) for tensor in gguf.GGUFReader(path).tensors
    }
