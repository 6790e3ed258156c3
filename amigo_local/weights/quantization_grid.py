"""What quantization alone costs, measured: which of the values that a block can hold is nearest to the original.

A quantizer chooses scales for a block, with or without an importance matrix, and then gives every weight the code
whose value is nearest. So the file's own scales say what each weight may have become, and weights that stand at
another code than the nearest were changed before they were quantized. The quantizer itself isn't needed.
"""

from __future__ import annotations

from typing import NamedTuple, Self

import msgspec
import numpy as np

from amigo_local.weights.ggml_types import GgmlType
from amigo_local.weights.kernels import Bytes, Kernels, Rows


class Codes(NamedTuple):
    """Bytes of a block that hold codes (block_q4_0 … block_q6_K in ggml-common.h), and what makes all of them one."""

    span: tuple[int, int]
    low_bits: tuple[int, int]
    ones: int
    lowest: int
    highest: int


# Types whose values lie at even distances: value = lowest + code * step within a block's part.
GRID_CODES = {
    "Q4_0": Codes((2, 18), (2, 18), 0x11, 0, 15),
    "Q4_1": Codes((4, 20), (4, 20), 0x11, 0, 15),
    "Q5_0": Codes((2, 22), (6, 22), 0x11, 0, 31),
    "Q5_1": Codes((4, 24), (8, 24), 0x11, 0, 31),
    "Q8_0": Codes((2, 34), (2, 34), 0x01, -127, 127),
    "Q2_K": Codes((16, 80), (16, 80), 0x55, 0, 3),
    "Q3_K": Codes((0, 96), (32, 96), 0x55, 0, 7),
    "Q4_K": Codes((16, 144), (16, 144), 0x11, 0, 15),
    "Q5_K": Codes((16, 176), (48, 176), 0x11, 0, 31),
    "Q6_K": Codes((0, 192), (0, 128), 0x11, 0, 63),
}
# Half a unit in the last place: of the file's own type, relative; and the smallest half-precision number's.
_OWN_ROUNDING = {"F32": 2.0**-24, "F16": 2.0**-11, "BF16": 2.0**-8}
_SMALLEST = 2.0**-25
# The original may have been rounded to bfloat16 on either side of the conversion.
_REFERENCE_ROUNDING = 2.0**-8
# Steps beyond half a step that count as nearest, and the share of misplaced weights that the right original shows.
# Measured on SmolLM2's weights with noise between their own codes: K-quants and Q8_0, with an importance matrix or
# without, none at all. A low-rank change of half a percent: 0.0003 (Q2_K), 0.001 (Q4_K), 0.025 (Q6_K), 0.1 (Q8_0).
# Requantized from Q8_0: 0.0004 (Q4_K) to 0.035 (Q6_K), not to be told from a change.
_SLACK, _LIMIT = 0.005, 0.0002
# Older types scale once more after they have chosen codes for an importance matrix: up to 0.007. Without one they
# fit the scale to the outermost weights (quantize_row_q4_0_ref in ggml-quants.c), which every block then shows.
_OLD_SLACK, _WEIGHTED_LIMIT = 0.02, 0.01
_OLD = frozenset({"Q4_0", "Q4_1", "Q5_0", "Q5_1"})
_SPANS_BOTH_ENDS = frozenset({"Q4_1", "Q5_1"})
_WEIGHTED_SHARE = 0.01  # of blocks that don't; measured: none without an importance matrix, 0.02 to 0.41 with one
# Types with uneven values: the largest relative error measured on the same weights, importance weights drawn from
# a log-normal distribution of deviation 0.5 and 1.5. Below it nothing can be said of a change.
_TYPICAL_ERROR = {
    "IQ4_NL": 0.09,
    "IQ4_XS": 0.09,
    "IQ3_S": 0.185,
    "IQ3_XXS": 0.24,
    "IQ2_S": 0.31,
    "IQ2_XS": 0.36,
    "IQ2_XXS": 0.42,
    "IQ1_M": 0.6,
    "IQ1_S": 0.58,
    "MXFP4": 0.125,
    "NVFP4": 0.1,
}
_UNKNOWN_ERROR = 0.9


class Residual(msgspec.Struct, frozen=True):
    """Sums of squares over weights: of the original, of file minus original, and of the latter at nearest codes."""

    elements: int = 0
    original: float = 0.0
    found: float = 0.0
    nearest: float = 0.0
    misplaced: int = 0
    blocks: int = 0
    weighted_blocks: int = 0
    """Blocks of an older type whose scale an importance matrix chose."""

    def __add__(self, other: Self) -> Residual:
        return Residual(
            self.elements + other.elements,
            self.original + other.original,
            self.found + other.found,
            self.nearest + other.nearest,
            self.misplaced + other.misplaced,
            self.blocks + other.blocks,
            self.weighted_blocks + other.weighted_blocks,
        )

    @property
    def is_explained(self) -> bool:
        """Whether the file's very own original may show as many misplaced weights."""
        weighted = self.weighted_blocks > _WEIGHTED_SHARE * self.blocks
        return self.misplaced <= self.elements * (_WEIGHTED_LIMIT if weighted else _LIMIT)


def residual(kernels: Kernels, kind: GgmlType, raw: Bytes, original: Rows) -> Residual:
    """`raw`: rows of the file, (rows, row bytes) uint8; `original`: the same weights, (rows, row length) float32."""
    reference = original.reshape(-1)
    values = kernels.dequantize(kind.id, raw.reshape(-1), reference.size)
    error = values - reference
    total, found = _squares(reference), _squares(error)
    if kind.name in GRID_CODES:
        grid = grid_of(kernels, kind, raw.reshape(-1, kind.block_bytes))
        saved, misplaced = _at_nearest(kind, grid, reference, values, error)
        weighted = _weighted(kind, grid, values) if kind.name in _OLD else 0
        blocks = reference.size // kind.block_size
        return Residual(reference.size, total, found, found - saved, misplaced, blocks, weighted)
    if kind.name in _OWN_ROUNDING:
        saved, misplaced = _at_rounding(_OWN_ROUNDING[kind.name], reference, error)
        return Residual(reference.size, total, found, found - saved, misplaced)
    limit = _TYPICAL_ERROR.get(kind.name, _UNKNOWN_ERROR) ** 2 * total
    return Residual(reference.size, total, found, min(found, limit), reference.size if found > limit else 0)


def _squares(values: Rows) -> float:
    return float(np.dot(values, values))


def _at_rounding(own: float, reference: Rows, error: Rows) -> tuple[float, int]:
    """(how much smaller the sum of squares would be without the misplaced weights' errors, how many there are)."""
    bound = np.abs(reference) * np.float32(_REFERENCE_ROUNDING + own) + np.float32(_SMALLEST)
    off = error[np.abs(error) > bound]
    return _squares(off), off.size


def grid_of(kernels: Kernels, kind: GgmlType, blocks: Bytes) -> tuple[Rows, Rows]:
    """(value of code 0, distance from one code's value to the next) of each weight."""
    codes, elements = GRID_CODES[kind.name], len(blocks) * kind.block_size
    altered = blocks.copy()
    altered[:, slice(*codes.span)] = 0
    zero = kernels.dequantize(kind.id, altered.reshape(-1), elements)
    altered[:, slice(*codes.low_bits)] = codes.ones
    step = kernels.dequantize(kind.id, altered.reshape(-1), elements)
    step -= zero
    return zero, step


def _at_nearest(
    kind: GgmlType, grid: tuple[Rows, Rows], reference: Rows, values: Rows, error: Rows
) -> tuple[float, int]:
    """(how much smaller the sum of squares is with misplaced weights at their nearest codes, how many there are)."""
    codes, (zero, step) = GRID_CODES[kind.name], grid
    bound = np.abs(step) * np.float32(0.5 + (_OLD_SLACK if kind.name in _OLD else _SLACK))
    bound += np.abs(reference) * np.float32(_REFERENCE_ROUNDING)
    # A step of zero leaves one value to choose from.
    at = np.flatnonzero((np.abs(error) > bound) & (step != 0))
    code = np.rint((values[at] - zero[at]) / step[at])
    best = np.clip(np.rint((reference[at] - zero[at]) / step[at]), codes.lowest, codes.highest)
    wrong = best != code  # else it stands at an end of the scale, beyond which nothing is nearer
    at, best = at[wrong], best[wrong]
    return _squares(error[at]) - _squares(zero[at] + best * step[at] - reference[at]), at.size


def _weighted(kind: GgmlType, grid: tuple[Rows, Rows], values: Rows) -> int:
    """How many blocks have no weight at the end of their scale, or at both ends where there are two."""
    zero, step = grid
    with np.errstate(divide="ignore", invalid="ignore"):
        code = np.rint((values - zero) / step).reshape(-1, kind.block_size)
    inner = code.min(axis=1) > 0
    if kind.name in _SPANS_BOTH_ENDS:
        inner |= code.max(axis=1) < GRID_CODES[kind.name].highest
    return int(np.count_nonzero(inner))
