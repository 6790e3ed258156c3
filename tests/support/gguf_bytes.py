"""GGUF files put together byte by byte, so that any of their bytes can be wrong."""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence

# enum gguf_type in gguf.h
UINT8, INT8, UINT16, INT16, UINT32, INT32, FLOAT32, BOOL, STRING, ARRAY, UINT64, INT64, FLOAT64 = range(13)
LAYOUTS = dict(zip((0, 1, 2, 3, 4, 5, 6, 7, 10, 11, 12), "BbHhIif?Qqd", strict=True))


def text(value: str | bytes) -> bytes:
    data = value.encode() if isinstance(value, str) else value
    return struct.pack("<Q", len(data)) + data


def field(key: str | bytes, kind: int, value: int | float | bool | str | bytes) -> bytes:
    stored = text(value) if isinstance(value, str | bytes) else struct.pack("<" + LAYOUTS[kind], value)
    return text(key) + struct.pack("<I", kind) + stored


def array_field(key: str, kind: int, values: Sequence[int | float | bool | str | bytes]) -> bytes:
    items = b"".join(text(v) if isinstance(v, str | bytes) else struct.pack("<" + LAYOUTS[kind], v) for v in values)
    return text(key) + struct.pack("<IIQ", ARRAY, kind, len(values)) + items


def tensor_entry(name: str | bytes, dimensions: Sequence[int], type_id: int = 0, offset: int = 0) -> bytes:
    return text(name) + struct.pack(f"<I{len(dimensions)}QIQ", len(dimensions), *dimensions, type_id, offset)


def gguf_file(
    fields: Sequence[bytes] = (),
    tensors: Sequence[bytes] = (),
    *,
    version: int = 3,
    data: int = 4096,
    alignment: int = 32,
) -> bytes:
    head = b"GGUF" + struct.pack("<IQQ", version, len(tensors), len(fields)) + b"".join(fields) + b"".join(tensors)
    return head + bytes(-len(head) % alignment) + bytes(data)


ARCHITECTURE = field("general.architecture", STRING, "llama")


def integers(data: bytes) -> Iterator[tuple[int, int]]:
    """(offset, bytes) of everything in a valid file that sizes, counts, places or types something else."""
    position = 0

    def take(size: int) -> tuple[int, int, int]:
        nonlocal position
        position += size
        return position - size, size, int.from_bytes(data[position - size : position], "little")

    def skip_text() -> Iterator[tuple[int, int]]:
        nonlocal position
        place = take(8)
        yield place[:2]
        position += place[2]

    def skip_value(kind: int) -> Iterator[tuple[int, int]]:
        nonlocal position
        if kind == STRING:
            yield from skip_text()
        elif kind == ARRAY:
            item, count = take(4), take(8)
            yield from (item[:2], count[:2])
            for _ in range(count[2]):
                yield from skip_value(item[2])
        else:
            yield take(struct.calcsize("<" + LAYOUTS[kind]))[:2]

    yield take(4)[:2]
    version, tensors, fields = take(4), take(8), take(8)
    yield from (version[:2], tensors[:2], fields[:2])
    for _ in range(fields[2]):
        yield from skip_text()
        kind = take(4)
        yield kind[:2]
        yield from skip_value(kind[2])
    for _ in range(tensors[2]):
        yield from skip_text()
        rank = take(4)
        yield rank[:2]
        yield from (take(8)[:2] for _ in range(rank[2]))
        yield from (take(4)[:2], take(8)[:2])
