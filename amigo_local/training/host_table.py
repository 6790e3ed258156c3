"""An embedding or head whose rows stay on the host in the format they are stored in."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator

import torch

from amigo_local.domain.errors import InputError
from amigo_local.training.copy_engine import CopyEngine, Ticket
from amigo_local.training.ggml_decoding import can_decode, decode, is_stored_as, row_bytes

Tile = tuple[int, torch.Tensor]
"""(first row, (rows, columns)), valid until the next tile is asked for."""

_STORED_AS = {torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}


class HostTable:
    """(rows, columns) numbers kept as `raw` (rows, row bytes) uint8 on the host, mapped or in memory.

    type_name: ggml's (`Q6_K`, `BF16`). keep_decoded_bytes: a decoded copy no larger than that is made at the first
    pass over all rows and kept on the device that computes; otherwise each pass decodes anew (what that costs:
    buffer_sizes.KEEP_DECODED_BYTES).

    Raises InputError for a type that torch operations can't decode or rows that aren't whole blocks.
    """

    def __init__(self, raw: torch.Tensor, type_name: str, columns: int, keep_decoded_bytes: int = 0) -> None:
        if not can_decode(type_name):
            raise InputError(
                f"a table of type {type_name} can't be decoded where it is used",
                "build the store again: it keeps such a table as bf16",
            )
        expected = row_bytes(type_name, columns)
        if raw.dtype != torch.uint8 or raw.ndim != 2 or raw.shape[1] != expected or not raw.is_contiguous():
            raise InputError(
                f"a table of {type_name} with {columns} columns has rows of {expected} bytes, found "
                f"{tuple(raw.shape)} {raw.dtype}",
                "the store doesn't match its source: build it again",
            )
        self.raw, self.type_name, self.keep_decoded_bytes = raw, type_name, keep_decoded_bytes
        self.shape = torch.Size((raw.shape[0], columns))
        self._kept: torch.Tensor | None = None

    @classmethod
    def of(cls, weight: torch.Tensor) -> HostTable:
        """Over the memory of an f32, f16 or bf16 matrix on the host."""
        weight = weight.detach().contiguous()
        return cls(weight.view(torch.uint8), _STORED_AS[weight.dtype], weight.shape[1])

    def rows(self, ids: torch.Tensor, dtype: torch.dtype, device: torch.device | None = None) -> torch.Tensor:
        """ids: (n,) int64 on any device -> (n, columns) of `dtype` on `device` (None: the host), in memory of its own.

        Raw bytes are gathered on the host and decoded on the device.
        """
        raw = self.raw.index_select(0, ids.to("cpu"))
        return decode(raw if device is None else raw.to(device), self.type_name, self.shape[1], dtype)

    def tiles(self, tile_rows: int, device: torch.device, dtype: torch.dtype, engine: CopyEngine) -> Iterator[Tile]:
        """All rows in order, at most `tile_rows` at once, decoded on `device`.

        On the host's own processor nothing is copied: tiles are decoded from the mapped bytes, or are views of them.
        """
        kept = self._decoded_whole(tile_rows, device, dtype, engine)
        if kept is not None:
            return ((first, kept[first:last]) for first, last in self._spans(tile_rows))
        if device.type == "cpu":
            return self._decoded_in_place(tile_rows, dtype)
        return self.streamed_tiles(tile_rows, device, dtype, engine)

    def streamed_tiles(
        self, tile_rows: int, device: torch.device, dtype: torch.dtype, engine: CopyEngine
    ) -> Iterator[Tile]:
        """As `tiles`, moving raw bytes through two buffers on `device`: the next tile is copied while one is used.

        VRAM while it runs: 2 * tile_rows * row bytes, the decoded tile unless `dtype` is what is stored, and
        `ggml_decoding.temporary_bytes`.
        """
        row_nbytes, spans = self.raw.shape[1], self._spans(tile_rows)
        tile_rows = min(tile_rows, self.shape[0])
        buffers = [
            torch.empty(tile_rows, row_nbytes, dtype=torch.uint8, device=device) for _ in range(min(2, len(spans)))
        ]
        decoded = self._decoding_buffer(tile_rows, dtype, device)
        under_way: deque[Ticket] = deque()

        def start(index: int) -> None:
            first, last = spans[index]
            target = buffers[index % 2][: last - first]
            # Whatever used this buffer, the tile before the present one, is started by now: its user has come back.
            under_way.append(engine.copy(target.view(-1), self.raw[first:last].view(-1), after=engine.mark()))

        try:
            start(0)
            for index, (first, last) in enumerate(spans):
                engine.wait(under_way.popleft())
                if index + 1 < len(spans):
                    start(index + 1)
                yield first, self._decode(buffers[index % 2][: last - first], dtype, decoded)
        finally:
            # A pass that is broken off frees its buffers, which a late copy would still write to.
            for ticket in under_way:
                engine.wait(ticket)

    def _decoded_in_place(self, tile_rows: int, dtype: torch.dtype) -> Iterator[Tile]:
        decoded = self._decoding_buffer(min(tile_rows, self.shape[0]), dtype, torch.device("cpu"))
        for first, last in self._spans(tile_rows):
            yield first, self._decode(self.raw[first:last], dtype, decoded)

    def _decoded_whole(
        self, tile_rows: int, device: torch.device, dtype: torch.dtype, engine: CopyEngine
    ) -> torch.Tensor | None:
        if self.shape.numel() * dtype.itemsize > self.keep_decoded_bytes:
            return None
        if self._kept is None or self._kept.dtype != dtype or self._kept.device.type != device.type:
            if device.type == "cpu":
                self._kept = decode(self.raw, self.type_name, self.shape[1], dtype)
            else:
                self._kept = torch.empty(self.shape, dtype=dtype, device=device)
                for first, tile in self.streamed_tiles(tile_rows, device, dtype, engine):
                    self._kept[first : first + tile.shape[0]] = tile
        return self._kept

    def _decoding_buffer(self, rows: int, dtype: torch.dtype, device: torch.device) -> torch.Tensor | None:
        if is_stored_as(self.type_name, dtype):
            return None
        return torch.empty(rows, self.shape[1], dtype=dtype, device=device)

    def _decode(self, raw: torch.Tensor, dtype: torch.dtype, buffer: torch.Tensor | None) -> torch.Tensor:
        out = None if buffer is None else buffer[: raw.shape[0]]
        return decode(raw, self.type_name, self.shape[1], dtype, out)

    def _spans(self, tile_rows: int) -> list[tuple[int, int]]:
        rows = self.shape[0]
        return [(first, min(first + tile_rows, rows)) for first in range(0, rows, tile_rows)]
