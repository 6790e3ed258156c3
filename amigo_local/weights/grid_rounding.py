"""Rounding a small change of quantized weights so that it survives on average.

A quantized base lies exactly on the grid of its own blocks. Rounded to nearest, a change of less than half a step
falls back to where it was, and a LoRA update is nearly everywhere that small: of a really trained adapter on a Q4_1
base 9 % of the effect was left. Rounded up or down by chance, in proportion to where the value lies between two
codes, every weight keeps its change in expectation (stochastic rounding; Gupta et al. 2015, section 3.1), and the
noise, which averages out over the thousands of weights of a product, is that of the change and not of the weight:
step * |change| - change**2, where quantizing anew costs step**2 / 12. Figures: docs/measurements.md.
"""

from __future__ import annotations

import hashlib

import numpy as np

from amigo_local.weights.ggml_types import GgmlType
from amigo_local.weights.kernels import Bytes, Kernels, Rows
from amigo_local.weights.quantization_grid import GRID_CODES, grid_of

_BEYOND_STEPS = 0.5  # what rounding to nearest would lose at most


def can_round_on_grid(kind: GgmlType) -> bool:
    """Whether values of this type lie at even distances within a block, so that they have neighbours to choose from."""
    return kind.name in GRID_CODES


class GridRounding:
    """The choices of one tensor: the same for the same name, whatever the number of threads."""

    def __init__(self, kernels: Kernels, kind: GgmlType, name: str) -> None:
        self._kernels, self._kind = kernels, kind
        key = int.from_bytes(hashlib.sha256(name.encode()).digest()[:16], "little")
        self._chance = np.random.Generator(np.random.Philox(key=key))

    def round(self, raw: Bytes, rows: Rows) -> Rows:
        """`raw`: the base's blocks of the very same rows; `rows`: their changed values, (rows, row length) float32.

        Returns values that are on the base's grid, so that quantizing them changes nothing more. A block in which a
        value has left its scale by more than half a step comes back as it was given: it needs a new scale, and on
        that it doesn't stand on a grid that small changes would fall back to.
        """
        kind, codes = self._kind, GRID_CODES[self._kind.name]
        chance = self._chance.random(rows.size, dtype=np.float32)
        blocks, changed, out = raw.reshape(-1, kind.block_bytes), rows.reshape(-1), np.empty(rows.size, np.float32)

        def work(first: int, count: int) -> None:
            mine = slice(first, first + count)
            part = blocks[first // kind.block_size : (first + count) // kind.block_size]
            zero, step = grid_of(self._kernels, kind, part)
            base = self._kernels.dequantize(kind.id, part.reshape(-1), count)
            wanted = changed[mine]
            fixed = step == 0  # equal weights, which stand at no code: what moves one of them needs a new scale
            step[fixed] = 1
            code = np.rint((base - zero) / step)
            exact = code + (wanted - base) / step
            beyond = np.maximum(codes.lowest - exact, exact - codes.highest) > _BEYOND_STEPS
            beyond[fixed] = wanted[fixed] != base[fixed]
            code += np.floor(exact - code + chance[mine])
            np.clip(code, codes.lowest, codes.highest, out=code)
            code *= step
            code += zero
            code[fixed] = base[fixed]
            rescaled = np.repeat(beyond.reshape(-1, kind.block_size).any(axis=1), kind.block_size)
            out[mine] = np.where(rescaled, wanted, code)

        self._kernels.share(rows.size, kind.block_size, work)
        return out.reshape(rows.shape)
