"""One tensor to double-quantized NF4, a piece at a time, byte for byte as bitsandbytes makes it of the whole."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from amigo_local.training.nf4_index import BLOCK, NESTED_BLOCK

_PIECE = 1 << 17  # values at once in one thread: their 4-byte temporaries fit a core's second-level cache
_SMALLEST_SCALE = 1e-38  # bitsandbytes/backends/default/ops.py clamps to it before it divides

Floats = npt.NDArray[np.float32]


class BlockSums(NamedTuple):
    """What is kept of each block, f64 (blocks,), to know its error under whatever scale it gets in the end."""

    weights: npt.NDArray[np.float64]
    """Sum of w^2."""
    errors: npt.NDArray[np.float64]
    """Sum of (w - d)^2, d being the weight decoded with the scale as it was before it was quantized itself."""
    crossed: npt.NDArray[np.float64]
    """Sum of (w - d) d."""
    decoded: npt.NDArray[np.float64]
    """Sum of d^2."""


class Nf4Scales(NamedTuple):
    codes: torch.Tensor
    """uint8 (blocks,): QuantState.absmax."""
    scales: torch.Tensor
    """f32 (blocks / 256,): QuantState.state2.absmax."""
    offset: float
    """A float32: QuantState.offset."""
    error: float
    """Root of sum (w - decoded)^2 / sum w^2 over the tensor, w being the weights as they came, in f32."""


class NonFinite(ValueError):
    """`count` values of a piece are NaN or infinite, or become so in bfloat16."""

    def __init__(self, count: int) -> None:
        super().__init__(count)
        self.count = count


@contextmanager
def quantizing_threads() -> Iterator[Executor]:
    """One thread a core, and torch's own held to one: its mean of more than 32768 values depends on how many there are
    (at::parallel_reduce), and so would an offset and with it all scales."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with ThreadPoolExecutor(os.cpu_count() or 1, thread_name_prefix="nf4") as pool:
            yield pool
    finally:
        torch.set_num_threads(before)


class TensorQuantizer:
    """Quantizes `elements` float32 values, fed in order in pieces of any size, after rounding them to bfloat16.

    Packed codes land in `packed`, uint8 (ceil(elements / 2),). Holds a few pieces, 36 bytes a block, and no more.
    """

    def __init__(self, elements: int, packed: torch.Tensor, pool: Executor, ahead: int | None = None) -> None:
        """`ahead`: pieces that may wait for a thread; None: one more than there are cores."""
        blocks = -(-elements // BLOCK)
        self._packed, self._pool, self._ahead = packed, pool, ahead or (os.cpu_count() or 1) + 1
        self._absmax = torch.empty(blocks)
        self._sums = BlockSums(*(np.empty(blocks) for _ in BlockSums._fields))
        self._elements, self._fed, self._rest = elements, 0, np.empty(0, np.float32)
        self._waiting: deque[Future[None]] = deque()

    def feed(self, rows: Floats) -> None:
        """The next values in row-major order; the array must not change afterwards. Raises NonFinite."""
        values = rows.reshape(-1)
        if self._rest.size:  # rows that are no whole blocks: a block may begin in one piece and end in the next
            values = np.concatenate([self._rest, values])
        whole = values.size if self._fed + values.size == self._elements else values.size // BLOCK * BLOCK
        self._rest = values[whole:]
        if whole:
            self._waiting.append(self._pool.submit(self._quantize, self._fed, values[:whole]))
            self._fed += whole
        while len(self._waiting) > self._ahead:
            self._waiting.popleft().result()

    def finish(self) -> Nf4Scales:
        """Raises NonFinite."""
        from bitsandbytes.functional import dequantize_blockwise, quantize_blockwise

        while self._waiting:
            self._waiting.popleft().result()
        assert self._fed == self._elements, "fewer values than were announced"
        offset = self._absmax.mean()
        codes, state = quantize_blockwise(self._absmax - offset, blocksize=NESTED_BLOCK)
        final = dequantize_blockwise(codes, state) + offset
        return Nf4Scales(codes, state.absmax, offset.item(), self._error(final.numpy()))

    def _error(self, final: Floats) -> float:
        """A scale that is quantized itself is 1 + c times what it was, so that each block's error changes:
        (w - d - c d)^2 = (w - d)^2 - 2 c (w - d) d + c^2 d^2."""
        exact = self._absmax.numpy().astype(np.float64)
        change = np.divide(final, exact, out=np.ones_like(exact), where=exact > _SMALLEST_SCALE) - 1
        sums = self._sums
        error = (sums.errors - 2 * change * sums.crossed + change**2 * sums.decoded).sum()
        total = sums.weights.sum()
        return float(np.sqrt(max(0.0, error) / total)) if total else 0.0

    def _quantize(self, first: int, values: Floats) -> None:
        for start in range(0, values.size, _PIECE):
            piece = values[start : start + _PIECE]
            at = first + start
            packed, absmax = quantize_nf4(torch.from_numpy(piece))
            if not bool(torch.isfinite(absmax).all()):
                finite = torch.isfinite(torch.from_numpy(values).bfloat16())
                raise NonFinite(values.size - int(torch.count_nonzero(finite)))
            self._packed[at // 2 : at // 2 + packed.numel()] = packed
            blocks = slice(at // BLOCK, at // BLOCK + absmax.numel())
            self._absmax[blocks] = absmax
            for kept, sums in zip(self._sums, _block_sums(piece, packed, absmax), strict=True):
                kept[blocks] = sums


def quantize_nf4(values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(n,) -> packed (ceil(n / 2),) uint8, scales (ceil(n / 64),) float32, of the values rounded to bfloat16.

    The arithmetic of quantize_4bit in bitsandbytes/backends/default/ops.py, which its CPU backend runs, but that it
    divides in a last part of a block where it multiplies by the inverse in whole ones: with bfloat16 numbers that
    never changes a code. Counting the bounds below a value takes a tenth of the time of torch.bucketize there.
    """
    rounded = values.bfloat16().float()
    part = rounded.numel() % BLOCK
    padded = torch.nn.functional.pad(rounded, (0, -rounded.numel() % BLOCK)) if part else rounded
    blocks = padded.view(-1, BLOCK)
    absmax = blocks.abs().amax(dim=-1)
    scaled = blocks * (1.0 / absmax.clamp(min=_SMALLEST_SCALE)).unsqueeze(-1)
    if part:
        absmax[-1].clamp_(min=_SMALLEST_SCALE)
    flat = scaled.clamp_(-1, 1).view(-1).numpy()
    codes = np.zeros(flat.shape, np.uint8)
    above = np.empty(flat.shape, np.bool_)
    for bound in _bounds():
        np.greater(flat, bound, out=above)
        codes += above.view(np.uint8)
    pairs = torch.from_numpy(codes).view(-1, 2)
    packed = (pairs[:, 0] << 4) | pairs[:, 1]
    return packed[: -(-values.numel() // 2)], absmax


def _bounds() -> Floats:
    """(15,): midpoints between neighbouring NF4 values; a value on one takes the lower code."""
    from bitsandbytes.functional import get_4bit_type

    code: Floats = get_4bit_type("nf4", device="cpu").numpy()
    return (code[:-1] + code[1:]) / np.float32(2)


def _block_sums(values: Floats, packed: torch.Tensor, absmax: torch.Tensor) -> Iterator[Floats]:
    """The fields of BlockSums for whole blocks and, padded with zeros, a part of one."""
    missing = -values.size % BLOCK
    if missing:
        values = np.pad(values, (0, missing))
        packed = torch.nn.functional.pad(packed, (0, values.size // 2 - packed.numel()), value=0x77)
    weights = values.reshape(-1, BLOCK)
    # Kernel of bitsandbytes' CPU library; the function around it wants a whole QuantState.
    decoded = torch.ops.bitsandbytes.dequantize_4bit.default(packed, absmax, BLOCK, "nf4", weights.shape, torch.float32)
    of_codes: Floats = decoded.numpy()
    errors = weights - of_codes
    for left, right in ((weights, weights), (errors, errors), (errors, of_codes), (of_codes, of_codes)):
        yield np.einsum("ij,ij->i", left, right)
