"""Pieces of a tensor quantized one by one are what bitsandbytes makes of the whole, bit by bit."""

from __future__ import annotations

from collections.abc import Iterator

import bitsandbytes.functional as bnb
import numpy as np
import pytest
import torch

from amigo_local.training.nf4_quantization import Nf4Scales, NonFinite, TensorQuantizer, quantizing_threads


def quantized(values: np.ndarray, pieces: Iterator[int]) -> tuple[torch.Tensor, Nf4Scales]:
    flat = values.reshape(-1)
    packed = torch.full((-(-flat.size // 2),), 0xEE, dtype=torch.uint8)
    with quantizing_threads() as pool:
        quantizer = TensorQuantizer(flat.size, packed, pool)
        start = 0
        while start < flat.size:
            size = next(pieces)
            quantizer.feed(flat[start : start + size])
            start += size
        return packed, quantizer.finish()


def whole(values: np.ndarray) -> tuple[torch.Tensor, bnb.QuantState]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        weights = torch.from_numpy(values).bfloat16()
        return bnb.quantize_4bit(weights, compress_statistics=True, quant_type="nf4")
    finally:
        torch.set_num_threads(before)


def sizes(seed: int = 0) -> Iterator[int]:
    random = np.random.default_rng(seed)
    while True:
        yield int(random.integers(1, 300))


def same_as_the_whole(values: np.ndarray, pieces: Iterator[int]) -> bool:
    packed, scales = quantized(values, pieces)
    expected, state = whole(values)
    return (
        torch.equal(packed, expected.view(-1))
        and torch.equal(scales.codes, state.absmax)
        and torch.equal(scales.scales, state.state2.absmax)
        and scales.offset == state.offset.item()
    )


@pytest.mark.parametrize("shape", [(1, 1), (3, 21), (7, 33), (1, 64), (5, 96), (31, 100), (300, 64), (270, 130)])
def test_tensors_of_any_size(shape: tuple[int, int]) -> None:
    values = np.random.default_rng(1).standard_normal(shape, dtype=np.float32) * 0.02
    assert same_as_the_whole(values, sizes())


def test_values_on_the_edges() -> None:
    """Zeros, whole blocks of them, subnormal scales, the largest bfloat16, and every bound and its two neighbours."""
    code = bnb.get_4bit_type("nf4", device="cpu").numpy()
    bounds = (code[1:] + code[:-1]) / 2
    near = np.concatenate([bounds, np.nextafter(bounds, -9), np.nextafter(bounds, 9), [1, -1, 0, -0.0]])
    random = np.random.default_rng(2)
    rows = [random.choice(near, 64) * scale for scale in (1, 2**-9, 1e-39, 3.3895e38, 2**-126, 0) for _ in range(40)]
    values = np.stack(rows).astype(np.float32)
    values[::3, 0] = np.abs(values).max(axis=1)[::3]
    assert same_as_the_whole(values, sizes())
    assert same_as_the_whole(np.zeros((3, 50), np.float32), sizes())  # the last block isn't whole


def test_multiplying_by_the_inverse_gives_the_code_of_dividing() -> None:
    """Every pair of bfloat16 significands, at the exponents in which their quotient is near a bound."""
    code = bnb.get_4bit_type("nf4", device="cpu").numpy()
    bounds = (code[1:] + code[:-1]) / np.float32(2)
    scales = np.arange(128, 256, dtype=np.float32)[:, None]
    for exponent in range(8):
        for sign in (1, -1):
            values = scales.T * np.float32(sign * 2.0**-exponent)
            by_inverse, by_dividing = values * (np.float32(1) / scales), values / scales
            assert np.array_equal(np.searchsorted(bounds, by_inverse), np.searchsorted(bounds, by_dividing))


def test_the_bytes_do_not_depend_on_threads() -> None:
    """More than 32768 scales: torch adds them up in as many parts as it has threads."""
    values = np.random.default_rng(0).standard_normal((1100, 4096), dtype=np.float32)
    scales = torch.from_numpy(values).bfloat16().float().view(-1, 64).abs().amax(-1)
    before = torch.get_num_threads()
    try:
        made, means = [], []
        for threads in (1, 7):
            torch.set_num_threads(threads)
            means.append(scales.mean().item())
            made.append(quantized(values, iter(lambda: 1 << 20, 0)))
            assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)
    assert means[0] != means[1], "nothing is shown by numbers that torch adds up to the same"
    assert torch.equal(made[0][0], made[1][0])
    assert made[0][1].offset == made[1][1].offset
    assert torch.equal(made[0][1].codes, made[1][1].codes)


@pytest.mark.parametrize("shape", [(64, 192), (33, 35)])
def test_the_error_is_that_of_the_decoded_tensor(shape: tuple[int, int]) -> None:
    random = np.random.default_rng(4)
    values = random.standard_normal(shape, dtype=np.float32) * random.uniform(0.01, 3, (shape[0], 1)).astype(np.float32)
    _, scales = quantized(values, sizes())
    packed, state = whole(values)
    codes = torch.stack((packed.view(-1) >> 4, packed.view(-1) & 15), -1).view(-1)[: values.size].long()
    absmax = bnb.dequantize_blockwise(state.absmax, state.state2) + state.offset
    decoded = state.code[codes].double() * absmax.repeat_interleave(64)[: values.size].double()
    exact = torch.from_numpy(values).view(-1).double()
    assert scales.error == pytest.approx(float((decoded - exact).norm() / exact.norm()), rel=1e-5)
    assert 0.08 < scales.error < 0.12


@pytest.mark.parametrize("bad", [np.nan, -np.inf, 3.4e38])
def test_what_is_not_finite_in_bfloat16_is_refused_and_counted(bad: float) -> None:
    values = np.ones((10, 64), np.float32)
    values[3, 5:7] = bad
    with pytest.raises(NonFinite) as refused:
        quantized(values, sizes())
    assert 1 <= refused.value.count <= 2
