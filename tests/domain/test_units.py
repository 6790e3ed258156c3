from __future__ import annotations

import pytest

from amigo_local.domain.errors import InputError
from amigo_local.domain.units import format_seconds, format_size, parse_size


@pytest.mark.parametrize(
    ("text", "size"),
    [("6GiB", 6 << 30), ("6G", 6 << 30), ("16GB", 16 * 10**9), ("512 MiB", 512 << 20), ("10", 10), ("1.5k", 1536)],
)
def test_sizes(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "GiB", "6 GiBs", "-1", "six"])
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(InputError):
        parse_size(text)


def test_formats() -> None:
    assert [format_size(n) for n in (0, 1023, 1536, 6 << 30)] == ["0 B", "1023 B", "1.5 KiB", "6.0 GiB"]
    assert [format_seconds(n) for n in (0.44, 12, 65, 7800)] == ["0.4 s", "12 s", "1 min 05 s", "2 h 10 min"]
    assert [format_seconds(n) for n in (-0.44, -155.6)] == ["-0.4 s", "-2 min 36 s"]
