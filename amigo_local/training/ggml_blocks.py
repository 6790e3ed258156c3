"""The ggml types that a table may stay in while training: sizes of their blocks and of decoding them; without torch."""

from __future__ import annotations

from typing import NamedTuple

ELEMENTS_AT_ONCE = {"cpu": 1 << 17, "cuda": 1 << 22}
"""Decoded together: what fits a core's second-level cache, and what a kernel launch (10 µs) doesn't show in."""


class BlockSize(NamedTuple):
    weights: int
    nbytes: int
    temporary_bytes: int
    """Of tensors alive at once for each of ELEMENTS_AT_ONCE, beyond the bytes given and the result; counted in
    test_ggml_decoding. On a CPU the casts within an operator take 8 more."""


BLOCKS = {
    "F32": BlockSize(1, 4, 0),
    "F16": BlockSize(1, 2, 0),
    "BF16": BlockSize(1, 2, 0),
    "Q8_0": BlockSize(32, 34, 1),
    "Q4_0": BlockSize(32, 18, 3),
    "Q4_1": BlockSize(32, 20, 6),
    "Q5_0": BlockSize(32, 22, 4),
    "Q5_1": BlockSize(32, 24, 6),
    "Q2_K": BlockSize(256, 84, 6),
    "Q3_K": BlockSize(256, 110, 4),
    "Q4_K": BlockSize(256, 144, 6),
    "Q5_K": BlockSize(256, 176, 6),
    "Q6_K": BlockSize(256, 210, 4),
    "IQ4_NL": BlockSize(32, 18, 7),
    "IQ4_XS": BlockSize(256, 136, 7),
}
"""By ggml's name; tables of other types are kept as bf16."""
