"""Decoding with torch operations, against ggml's C kernels and gguf-py's numpy: the same bits."""

from __future__ import annotations

import functools

import gguf
import numpy as np
import pytest
import torch

from amigo_local.training.ggml_decoding import ELEMENTS_AT_ONCE, can_decode, decode, row_bytes, temporary_bytes
from amigo_local.weights.ggml_types import GGML_TYPES, TYPES_BY_NAME
from amigo_local.weights.kernels import Kernels, load_kernels
from tests.support.storage_watch import StorageWatch

NUMBERS = ("F32", "F16", "BF16")
BLOCKS = ("Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "IQ4_NL", "IQ4_XS")
COLUMNS, ROWS = 2560, 70  # more than ELEMENTS_AT_ONCE on a CPU, and no multiple of it
# Where a block's f16 scales are: random bytes there would be NaN now and then, whose bits no one promises.
SCALES = {
    **dict.fromkeys(("Q8_0", "Q4_0", "Q5_0", "IQ4_NL", "IQ4_XS"), (0,)),
    **dict.fromkeys(("Q4_1", "Q5_1", "Q4_K", "Q5_K"), (0, 2)),
    **{"Q2_K": (80, 82), "Q3_K": (108,), "Q6_K": (208,)},
}


@functools.cache
def kernels() -> Kernels:
    return load_kernels(1)


def every_code(name: str) -> np.ndarray:
    """(ROWS, row bytes): random bytes, so every code and every sub-scale; scales of both signs, subnormal ones too."""
    kind, random = TYPES_BY_NAME[name], np.random.default_rng(len(name))
    raw = random.integers(0, 256, (ROWS * COLUMNS // kind.block_size, kind.block_bytes), np.uint8)
    for offset in SCALES[name]:
        scales = random.standard_normal(len(raw)) * 10.0 ** random.uniform(-7, 1, len(raw))
        raw[:, offset : offset + 2] = scales.astype(np.float16)[:, None].view(np.uint8)
    return raw.reshape(ROWS, -1)


def by_ggml(name: str, raw: np.ndarray) -> np.ndarray:
    return kernels().dequantize(TYPES_BY_NAME[name].id, raw, ROWS * COLUMNS).reshape(ROWS, COLUMNS)


def bits(values: torch.Tensor | np.ndarray) -> np.ndarray:
    return np.asarray(values).view(np.uint32)


@pytest.mark.parametrize("name", BLOCKS)
def test_every_code_under_any_scale_is_decoded_to_the_bits_of_ggml(name: str) -> None:
    raw = every_code(name)
    decoded = decode(torch.from_numpy(raw), name, COLUMNS, torch.float32)
    np.testing.assert_array_equal(bits(decoded), bits(by_ggml(name, raw)))
    by_gguf = gguf.quants.dequantize(raw, gguf.GGMLQuantizationType[name])
    np.testing.assert_array_equal(bits(decoded), bits(by_gguf))


@pytest.mark.parametrize("name", NUMBERS)
def test_numbers_are_decoded_to_the_bits_of_ggml(name: str) -> None:
    rows = np.random.default_rng(0).standard_normal((ROWS, COLUMNS), np.float32)
    kind = TYPES_BY_NAME[name]
    raw = rows.view(np.uint8) if name == "F32" else kernels().quantize(kind.id, rows)
    decoded = decode(torch.from_numpy(raw), name, COLUMNS, torch.float32)
    np.testing.assert_array_equal(bits(decoded), bits(by_ggml(name, raw)))


@pytest.mark.parametrize("name", ["Q6_K", "Q4_K", "Q8_0", "F16", "F32"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_other_dtypes_are_the_f32_values_rounded_once(name: str, dtype: torch.dtype) -> None:
    rows = np.random.default_rng(1).standard_normal((ROWS, COLUMNS), np.float32)
    raw = rows.view(np.uint8) if name == "F32" else kernels().quantize(TYPES_BY_NAME[name].id, rows)
    expected = torch.from_numpy(by_ggml(name, raw)).to(dtype)
    assert torch.equal(decode(torch.from_numpy(raw), name, COLUMNS, dtype), expected)
    out = torch.empty(ROWS, COLUMNS, dtype=dtype)
    assert decode(torch.from_numpy(raw), name, COLUMNS, dtype, out) is out
    assert torch.equal(out, expected)


@pytest.mark.parametrize("name", [*BLOCKS, *NUMBERS])
def test_bytes_may_start_anywhere_in_a_mapped_file(name: str) -> None:
    """One block, and none of whose fields lies where a wider number may start."""
    columns = TYPES_BY_NAME[name].block_size
    raw = torch.from_numpy(every_code(name) if name in BLOCKS else np.arange(64, dtype=np.uint8).reshape(2, 32))
    expected = decode(raw[:1].clone(), name, raw.shape[1] // row_bytes(name, columns) * columns, torch.float32)
    for shift in (1, 2, 3):
        moved = torch.zeros(raw.shape[1] + shift, dtype=torch.uint8)[shift:]
        moved.copy_(raw[0])
        assert torch.equal(decode(moved[None], name, expected.shape[1], torch.float32), expected)


def test_numbers_of_the_wanted_dtype_are_a_view() -> None:
    weight = torch.randn(4, 8).bfloat16()
    decoded = decode(weight.view(torch.uint8), "BF16", 8, torch.bfloat16)
    assert decoded.data_ptr() == weight.data_ptr()
    assert torch.equal(decoded, weight)


@pytest.mark.parametrize("name", [*BLOCKS, *NUMBERS])
def test_temporaries_are_as_large_as_stated(name: str) -> None:
    rows = 4 * ELEMENTS_AT_ONCE["cpu"] // COLUMNS
    raw = torch.zeros(rows, row_bytes(name, COLUMNS), dtype=torch.uint8)
    out = torch.empty(rows, COLUMNS, dtype=torch.bfloat16)
    with StorageWatch(raw, out) as watch:
        decode(raw, name, COLUMNS, torch.bfloat16, out)
    stated = temporary_bytes(name, out.numel(), "cpu")
    assert stated == temporary_bytes(name, 4 * out.numel(), "cpu")  # a chunk's, not the whole's
    assert watch.peak_bytes <= stated
    assert watch.peak_bytes > 0.7 * stated or stated <= ELEMENTS_AT_ONCE["cpu"]


def test_types_without_a_decoder_are_named() -> None:
    known = {kind.name for kind in GGML_TYPES.values() if can_decode(kind.name)}
    assert known == {*NUMBERS, *BLOCKS}
    with pytest.raises(ValueError, match="rows of 100 values are no whole blocks of Q6_K"):
        row_bytes("Q6_K", 100)


@pytest.mark.gpu
@pytest.mark.parametrize("name", BLOCKS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_card_decodes_to_the_same_bits(name: str, dtype: torch.dtype) -> None:
    raw = torch.from_numpy(every_code(name))
    decoded = decode(raw.cuda(), name, COLUMNS, dtype)
    assert torch.equal(decoded.cpu(), decode(raw, name, COLUMNS, dtype))
