"""Sizes and durations as people write them, and back."""

from __future__ import annotations

import re

from amigo_local.domain.errors import InputError

KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30

_UNITS = {"": 1, "b": 1}
for _power, _letter in enumerate("kmgt", start=1):
    _UNITS[f"{_letter}ib"] = 1 << (10 * _power)
    _UNITS[f"{_letter}b"] = 1000**_power
    _UNITS[_letter] = 1 << (10 * _power)  # "6G" on a graphics card means GiB


def parse_size(text: str) -> int:
    """Bytes in `6GiB`, `6 GB`, `512M` or a bare count. Raises InputError on anything else."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]*)\s*", text)
    if match and (unit := _UNITS.get(match[2].lower())) is not None:
        return int(float(match[1]) * unit)
    raise InputError(f"{text!r} is not a size", "write it like 6GiB, 512MiB or 16GB")


def format_size(size_bytes: float) -> str:
    """`5.6 GiB`: binary units, one decimal from KiB up."""
    value = float(size_bytes)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(value) < 1024:
            return f"{value:.0f} B" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1024
    return f"{value:.1f} TiB"


def format_seconds(seconds: float) -> str:
    """`0.4 s`, `12 s`, `3 min 05 s`, `2 h 10 min`, `12 days`; a minus before what is below 0."""
    if seconds < 0:
        return f"-{format_seconds(-seconds)}"
    if seconds < 10:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    if whole < 48 * 3600:
        return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
    return f"{whole / 86400:.0f} days"
