"""Machines and shapes to plan with."""

from __future__ import annotations

import json
from importlib import resources
from typing import Any

from amigo_local.domain.machine import Machine
from amigo_local.domain.shape import ModelShape
from amigo_local.domain.units import GIB
from amigo_local.stages._shapes import named_shape

SMOLLM2_135M = ModelShape(
    architecture="llama",
    hidden_size=576,
    intermediate_size=1536,
    layers=30,
    heads=9,
    kv_heads=3,
    head_dim=64,
    vocabulary=49_152,
    context_length=8192,
)
GEMMA_3_12B = named_shape("gemma-3-12b")
LLAMA_3_1_8B = named_shape("llama-3.1-8b")


def machine(vram_gib: float | None = None, ram_gib: float = 16, disk_gib: float = 100) -> Machine:
    vram = None if vram_gib is None else int(vram_gib * GIB)
    return Machine(
        platform="linux",
        cpu_count=2,
        ram_total_bytes=int(ram_gib * GIB),
        ram_available_bytes=int(ram_gib * GIB),
        disk_free_bytes=int(disk_gib * GIB),
        gpu_name=None if vram is None else "a card",
        vram_total_bytes=vram,
        vram_free_bytes=vram,
    )


def shipped_config(name: str) -> dict[str, Any]:
    """A config.json as published."""
    config: dict[str, Any] = json.loads((resources.files("amigo_local") / "shapes" / f"{name}.json").read_bytes())
    return config
