"""Proof that an adapter is in an export: in its weights, however little survives rounding, and in its predictions."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from amigo_local.domain.artifact import Figure
from amigo_local.domain.errors import AmigoError
from amigo_local.domain.events import Emit, Note
from amigo_local.weights.adapter import check_adapter_fits, read_adapter
from amigo_local.weights.architecture import architecture_of, map_tensors
from amigo_local.weights.divergence import ChangeShare
from amigo_local.weights.gguf_header import GgufHeader
from amigo_local.weights.weight_source import GgufWeights, WeightSource

_HINT = "export with a wider quantization such as q8_0; if that fails too, report it"
# A change is in the weights when its share is beyond so many standard errors, and they can tell when the error is no
# larger than the other. Measured on tiny models and SmolLM2, adapters of 2 down to 0.000001 nats in Q4_0, Q4_1, Q8_0,
# Q4_K_M and Q3_K_M: lost ones at most 1.6 errors, right ones at least 5, mostly hundreds.
_CLEAR_ERRORS, _TELLING_ERROR = 4, 0.05
# How far from all of it the share in the predictions may be, beyond doubt (two standard errors), in types of 8 bits
# and more: right exports kept 0.90 to 1.01 of adapters of 0.01 to 10 nats. Rounded to nearest, narrower types drop
# what moves a weight by less than half a step, most of all the types that the base's weights are in, on whose very
# grid they lie (grid_rounding.py): of adapters of 2, 0.7, 0.13 and 0.015 nats Q4_0 and Q4_1 kept 0.85, 0.7, 0.2 to 0.3
# and 0.01 to 0.15 in `keep`, 0.88, 0.75, 0.3 to 1 and 0.1 to 1 as q4_k_m. That is told rather than refused.
_WIDE_TOLERANCE, _WIDE_BITS = 0.5, 8
_MIN_EFFECT = 0.01  # nats; below it even Q8_0 rounds half away in its own types
_WEAK_SHARE = 0.5


def check_change(base: WeightSource, exported: GgufHeader, adapter_dir: Path) -> dict[str, Figure]:
    """Returns adapter_in_weights with its error. Raises AmigoError when nothing of the adapter is in the weights."""
    share = share_in_weights(base, exported, adapter_dir)
    if share.error <= _TELLING_ERROR and share.share <= _CLEAR_ERRORS * share.error:
        raise AmigoError(
            f"{exported.path}: the adapter is not in it: {share.share:.2g} ± {share.error:.2g} of what it adds to the "
            "weights is",
            _HINT,
        )
    return share.figures("adapter_in_weights")


def share_in_weights(base: WeightSource, exported: GgufHeader, adapter_dir: Path) -> ChangeShare:
    """How much of what an adapter adds to the weights is in a file: the slope of (file - base) on the change.

    Over the first chunk (2 M weights) of each adapted tensor. Rounding errors of single weights are independent of
    each other and of the change, so that millions of them tell a change of a hundredth of a step from none, where
    predictions can't. NaN when the adapter changes nothing.
    """
    found = GgufWeights(exported)
    both = own = noise = 0.0
    for name, change in check_adapter_fits(read_adapter(adapter_dir), base.shapes).items():
        (_, rows), (_, after) = next(base.tiles(name)), next(found.tiles(name))
        if len(base.shapes[name]) == 1:  # a vector comes as one row, and changes as a column
            rows, after = rows.reshape(-1, 1), after.reshape(-1, 1)
        count = min(len(rows), len(after))
        expected = change.load()(rows[:count], slice(0, count)) - rows[:count]
        difference = after[:count] - rows[:count]
        both += float(np.vdot(expected, difference))
        own += float(np.vdot(expected, expected))
        noise += float(np.square(expected * difference).sum())
    if not own > 0:
        return ChangeShare(float("nan"), float("nan"))
    # The error that a share of nothing has: the one that a lost adapter is judged by.
    return ChangeShare(both / own, float(np.sqrt(noise)) / own)


def check_effect(exported: GgufHeader, effect: float, share: ChangeShare, rounding: float, emit: Emit) -> None:
    """The adapter's effect on the predictions: `effect` nats in torch, of which `share` is in the file.

    `rounding`: nats between base plus adapter and the file. Raises AmigoError when wide types don't show the effect
    or show another; a Note says when narrow ones have rounded much of it away.
    """
    kinds = {tensor.source.type for tensor in map_tensors(exported, architecture_of(exported))[0]}
    is_wide = all(kind.block_bytes * 8 / kind.block_size >= _WIDE_BITS for kind in kinds)
    if effect > _MIN_EFFECT and is_wide and not abs(share.share - 1) - 2 * share.error <= _WIDE_TOLERANCE:
        raise AmigoError(
            f"{exported.path}: is not base plus adapter: {share.share:.3f} ± {share.error:.3f} of the adapter's effect "
            f"on the predictions ({effect:.3g} nats) is in it, expected 1 ± {_WIDE_TOLERANCE}",
            _HINT,
        )
    if rounding > effect or (share.share < _WEAK_SHARE and share.error < _WEAK_SHARE / 2):
        emit(
            Note(
                f"the adapter is weak against rounding to {exported.quantization}: {share.share:.0%} of its "
                f"{effect:.2g} nats are in the file, which is {rounding:.2g} nats from base plus adapter",
                "warning",
                "export with a wider quantization such as q8_0",
            )
        )
