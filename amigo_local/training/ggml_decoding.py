"""Weights in ggml's block formats decoded with plain torch operations, on whatever device their bytes lie."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch

from amigo_local.training.ggml_blocks import BLOCKS, ELEMENTS_AT_ONCE


class Codes(NamedTuple):
    """Blocks taken apart: value = codes * scale - minimum."""

    codes: torch.Tensor
    """(blocks, groups, group size) uint8 or int8."""
    scale: torch.Tensor
    """(blocks, groups, 1) f32."""
    minimum: torch.Tensor | None = None
    """(blocks, groups, 1) f32."""


def can_decode(type_name: str) -> bool:
    """Whether `decode` knows ggml's type of that name, as in `Q6_K`."""
    return type_name in BLOCKS


def is_stored_as(type_name: str, dtype: torch.dtype) -> bool:
    """Whether the stored bytes are numbers of `dtype`, so that decoding is a view."""
    return _NUMBERS.get(type_name) == dtype


def row_bytes(type_name: str, columns: int) -> int:
    """Raises ValueError when a row isn't whole blocks."""
    block = BLOCKS[type_name]
    if columns % block.weights:
        raise ValueError(f"rows of {columns} values are no whole blocks of {type_name}")
    return columns // block.weights * block.nbytes


def temporary_bytes(type_name: str, elements: int, device_type: str) -> int:
    """Peak of what decoding so many elements allocates besides its result."""
    return BLOCKS[type_name].temporary_bytes * min(elements, _at_once(device_type))


def _at_once(device_type: str) -> int:
    return ELEMENTS_AT_ONCE.get(device_type, ELEMENTS_AT_ONCE["cuda"])


def decode(
    raw: torch.Tensor, type_name: str, columns: int, dtype: torch.dtype, out: torch.Tensor | None = None
) -> torch.Tensor:
    """(rows, row bytes) uint8 -> (rows, columns) of `dtype`, on the device of `raw`, bit-equal to ggml's own decoding
    rounded once from f32 to nearest even. A view of `raw` when those are its numbers already and `out` is None.

    out: contiguous, written instead of a new tensor. Every product of ggml's is exact in f32 (11 bits of an f16
    scale, at most 8 of its sub-scale, at most 6 of a code), so that neither the order of factors nor a fused
    multiply-add changes a bit.
    """
    if type_name in _NUMBERS:
        numbers = _as_numbers(raw, _NUMBERS[type_name])
        if out is not None:
            return out.copy_(numbers)
        return numbers.to(dtype)
    block, take_apart = BLOCKS[type_name], _TAKE_APART[type_name]
    target = torch.empty(raw.shape[0], columns, dtype=dtype, device=raw.device) if out is None else out
    blocks, values = raw.reshape(-1, block.nbytes), target.view(-1, block.weights)
    step = max(1, _at_once(raw.device.type) // block.weights)
    for start in range(0, blocks.shape[0], step):
        _put_together(take_apart(blocks[start : start + step]), values[start : start + step])
    return target


def _put_together(apart: Codes, out: torch.Tensor) -> None:
    out = out.view(apart.codes.shape)
    if apart.minimum is None:
        torch.mul(apart.codes, apart.scale, out=out)
    else:
        torch.sub(apart.codes * apart.scale, apart.minimum, out=out)


def _as_numbers(raw: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """A view, or a copy when the bytes start where no number may (in a safetensors file with a header of any size)."""
    if raw.storage_offset() % dtype.itemsize or raw.stride(0) % dtype.itemsize:
        raw = raw.clone(memory_format=torch.contiguous_format)
    return raw.view(dtype)


def _float16(blocks: torch.Tensor, offset: int) -> torch.Tensor:
    """The f16 at that byte of each block: (blocks, 1) f32."""
    return _own(blocks[:, offset : offset + 2]).view(torch.float16).float()


def _own(part: torch.Tensor) -> torch.Tensor:
    """A contiguous copy even of what is contiguous: a view as wider numbers needs their alignment too."""
    return part.clone(memory_format=torch.contiguous_format)


def _fields(packed: torch.Tensor, shifts: tuple[int, ...], mask: int) -> torch.Tensor:
    """(..., n) uint8 -> (..., len(shifts) * n / 8) int64: the bit fields of all bytes at one shift, then at the next.

    Eight bytes are worked on as one number (four where n isn't a multiple of eight): twice as fast on a CPU.
    """
    wide = torch.int64 if packed.shape[-1] % 8 == 0 else torch.int32
    lanes = _own(packed).view(wide)
    lane_mask = mask * (int.from_bytes(b"\x01" * wide.itemsize, "little"))
    return torch.cat([(lanes >> shift) & lane_mask for shift in shifts], dim=-1)


def _codes(fields: torch.Tensor, group_size: int) -> torch.Tensor:
    """Fields of a block -> (blocks, groups, group size) uint8."""
    return fields.view(torch.uint8).view(fields.shape[0], -1, group_size)


def _signed(fields: torch.Tensor, group_size: int, zero: int) -> torch.Tensor:
    """As `_codes`, int8, counted from `zero`."""
    return _codes(fields, group_size).view(torch.int8).sub_(zero)


def _nibbles(packed: torch.Tensor) -> torch.Tensor:
    return _fields(packed, (0, 4), 15)


# What follows are dequantize_row_* of ggml-quants.c; block_* of ggml-common.h say where the fields lie.


def _q8_0(blocks: torch.Tensor) -> Codes:
    return Codes(blocks[:, None, 2:].view(torch.int8), _float16(blocks, 0)[:, None])


def _q4_0(blocks: torch.Tensor) -> Codes:
    return Codes(_signed(_nibbles(blocks[:, 2:]), 32, 8), _float16(blocks, 0)[:, None])


def _q4_1(blocks: torch.Tensor) -> Codes:
    return Codes(_codes(_nibbles(blocks[:, 4:]), 32), _float16(blocks, 0)[:, None], -_float16(blocks, 2)[:, None])


def _five_bits(high: torch.Tensor, low: torch.Tensor) -> torch.Tensor:
    """high: (blocks, 4), bit i belongs to value i; low: (blocks, 16). As `_fields`."""
    bits = torch.arange(8, dtype=torch.uint8, device=high.device)
    fifth = (high[:, :, None] >> bits).bitwise_and_(1).view(-1, 32).view(torch.int64)
    return fifth.bitwise_left_shift_(4).bitwise_or_(_nibbles(low))


def _q5_0(blocks: torch.Tensor) -> Codes:
    return Codes(_signed(_five_bits(blocks[:, 2:6], blocks[:, 6:]), 32, 16), _float16(blocks, 0)[:, None])


def _q5_1(blocks: torch.Tensor) -> Codes:
    codes = _codes(_five_bits(blocks[:, 4:8], blocks[:, 8:]), 32)
    return Codes(codes, _float16(blocks, 0)[:, None], -_float16(blocks, 2)[:, None])


def _q2_k(blocks: torch.Tensor) -> Codes:
    scales = blocks[:, :16, None]
    codes = _codes(_fields(blocks[:, 16:80].view(-1, 2, 32), (0, 2, 4, 6), 3), 16)
    scale = (scales & 15) * _float16(blocks, 80)[:, None]
    return Codes(codes, scale, (scales >> 4) * _float16(blocks, 82)[:, None])


def _q3_k(blocks: torch.Tensor) -> Codes:
    codes = _fields(blocks[:, 32:96].view(-1, 2, 32), (0, 2, 4, 6), 3).view(-1, 32)
    codes |= _fields(blocks[:, :32], tuple(range(8)), 1).bitwise_left_shift_(2)
    low, high = blocks[:, 96:104], blocks[:, 104:108]
    scales = _codes(_nibbles(low), 16) | (_codes(_fields(high, (0, 2, 4, 6), 3), 16) << 4)
    scale = scales.view(torch.int8).sub_(32).view(-1, 16, 1) * _float16(blocks, 108)[:, None]
    return Codes(_signed(codes, 16, 4), scale)  # a third bit that is off takes 4 away


def _six_bit_scales(packed: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """get_scale_min_k4: (blocks, 12) -> scales and minima, (blocks, 8) uint8 each."""
    scales, minima, high = packed[:, :4], packed[:, 4:8], packed[:, 8:]
    return (
        torch.cat((scales & 63, (high & 15) | ((scales >> 2) & 48)), dim=1),
        torch.cat((minima & 63, (high >> 4) | ((minima >> 2) & 48)), dim=1),
    )


def _q4_k(blocks: torch.Tensor) -> Codes:
    scales, minima = _six_bit_scales(blocks[:, 4:16])
    codes = _codes(_nibbles(blocks[:, 16:].view(-1, 4, 32)), 32)
    return Codes(codes, (scales * _float16(blocks, 0))[:, :, None], (minima * _float16(blocks, 2))[:, :, None])


def _q5_k(blocks: torch.Tensor) -> Codes:
    scales, minima = _six_bit_scales(blocks[:, 4:16])
    fifth = _fields(blocks[:, 16:48], tuple(range(8)), 1).bitwise_left_shift_(4)
    codes = _codes(fifth.bitwise_or_(_nibbles(blocks[:, 48:].view(-1, 4, 32)).view(-1, 32)), 32)
    return Codes(codes, (scales * _float16(blocks, 0))[:, :, None], (minima * _float16(blocks, 2))[:, :, None])


def _q6_k(blocks: torch.Tensor) -> Codes:
    high = _fields(blocks[:, 128:192].view(-1, 2, 32), (0, 2, 4, 6), 3).bitwise_left_shift_(4)
    codes = high.bitwise_or_(_nibbles(blocks[:, :128].view(-1, 2, 64)))
    scale = blocks[:, 192:208].view(torch.int8) * _float16(blocks, 208)
    return Codes(_signed(codes, 16, 32), scale[:, :, None])


# kvalues_iq4nl in ggml-common.h.
_IQ4_VALUES = (-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113)


def _looked_up(fields: torch.Tensor) -> torch.Tensor:
    """As `_signed`, in groups of 32: the values that the nibbles name."""
    codes = _codes(fields, 32)
    values = torch.tensor(_IQ4_VALUES, dtype=torch.int8, device=codes.device)
    return values.index_select(0, codes.view(-1).int()).view(codes.shape)


def _iq4_nl(blocks: torch.Tensor) -> Codes:
    return Codes(_looked_up(_nibbles(blocks[:, 2:])), _float16(blocks, 0)[:, None])


def _iq4_xs(blocks: torch.Tensor) -> Codes:
    pairs = torch.tensor((0, 2, 4, 6), dtype=torch.uint8, device=blocks.device)
    high = (blocks[:, 2:4, None] >> pairs).bitwise_and_(3).bitwise_left_shift_(4).view(-1, 8)
    low = torch.stack((blocks[:, 4:8] & 15, blocks[:, 4:8] >> 4), dim=-1).view(-1, 8)
    scale = high.bitwise_or_(low).view(torch.int8).sub_(32) * _float16(blocks, 0)
    return Codes(_looked_up(_nibbles(blocks[:, 8:].view(-1, 8, 16))), scale[:, :, None])


_NUMBERS = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
"""Types whose bytes are numbers."""
_TAKE_APART: dict[str, Callable[[torch.Tensor], Codes]] = {
    "Q8_0": _q8_0,
    "Q4_0": _q4_0,
    "Q4_1": _q4_1,
    "Q5_0": _q5_0,
    "Q5_1": _q5_1,
    "Q2_K": _q2_k,
    "Q3_K": _q3_k,
    "Q4_K": _q4_k,
    "Q5_K": _q5_k,
    "Q6_K": _q6_k,
    "IQ4_NL": _iq4_nl,
    "IQ4_XS": _iq4_xs,
}
"""(blocks, bytes of a block) uint8 -> Codes."""
