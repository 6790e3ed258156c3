"""What a stage needs of a model that isn't here yet, from its dimensions alone: rates and sizes of the stages' own."""

from __future__ import annotations

from typing import Any

from amigo_local.domain.plan import Needs
from amigo_local.domain.shape import ModelShape
from amigo_local.domain.units import MIB

BITS_A_WEIGHT = {"f32": 32.0, "f16": 16.0, "bf16": 16.0, "q8_0": 8.5, "q6_k": 6.56, "q5_k_m": 5.7, "q4_0": 4.55}
"""Of a GGUF's types; the others, and `keep`, count as Ollama's usual Q4_K_M."""
Q4_K_M_BITS = 4.9
RUNTIME_BYTES = 600 * MIB  # interpreter and llama.cpp with its keys and values, as evaluate and imatrix count them
CHECK_BYTES = 3  # of each embedding weight: tables and logits of the comparisons that export and unpack end with
UNPACKED_BYTES_PER_SECOND = 50e6
EXPORTED_WEIGHTS_PER_SECOND = 6.7e6  # with its proof: 134.5 M in 20 s on two cores (docs/measurements.md)
MULTIPLICATIONS_PER_SECOND = 15e9  # llama.cpp on one core (docs/measurements.md)


def gguf_bytes(shape: ModelShape, quant: str = "keep") -> int:
    return int(shape.parameters * BITS_A_WEIGHT.get(quant, Q4_K_M_BITS) / 8)


def predicted_needs(stage: str, params: Any, shape: ModelShape) -> Needs | None:
    """None: nothing about this stage depends on the model, or nothing is known."""
    check = 300 * MIB + CHECK_BYTES * shape.embedding_parameters
    match stage:
        case "pull":
            return Needs(disk_bytes=gguf_bytes(shape))
        case "unpack":
            disk = 2 * shape.parameters
            return Needs(disk_bytes=disk, ram_bytes=check, seconds=disk / UNPACKED_BYTES_PER_SECOND)
        case "imatrix":
            seconds = shape.parameters * params.chunks * 512 / MULTIPLICATIONS_PER_SECOND
            return Needs(disk_bytes=16 * MIB, ram_bytes=gguf_bytes(shape) + RUNTIME_BYTES, seconds=seconds)
        case "export":
            seconds = shape.parameters / EXPORTED_WEIGHTS_PER_SECOND
            return Needs(disk_bytes=gguf_bytes(shape, params.quant), ram_bytes=check, seconds=seconds)
        case "evaluate":
            return Needs(disk_bytes=16 * MIB, ram_bytes=gguf_bytes(shape) + RUNTIME_BYTES)
        case _:
            return None
