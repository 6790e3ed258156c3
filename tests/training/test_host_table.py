"""Rows and tiles of a table that stays on the host, against the whole table decoded by ggml."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from amigo_local.domain.errors import InputError
from amigo_local.training.copy_engine import CopyEngine, SyncEngine, ThreadedEngine
from amigo_local.training.host_table import HostTable
from amigo_local.weights.ggml_types import TYPES_BY_NAME
from amigo_local.weights.kernels import load_kernels
from tests.support.storage_watch import StorageWatch

ROWS, COLUMNS, TILE = 103, 256, 10
CPU = torch.device("cpu")
TYPES = ("Q6_K", "Q8_0", "BF16", "F32")


def a_table(name: str, keep_decoded_bytes: int = 0) -> tuple[HostTable, torch.Tensor]:
    """The table, and its numbers in f32 as ggml decodes them."""
    rows = np.random.default_rng(0).standard_normal((ROWS, COLUMNS), np.float32)
    kind, kernels = TYPES_BY_NAME[name], load_kernels(1)
    raw = rows.view(np.uint8).copy() if name == "F32" else kernels.quantize(kind.id, rows)
    decoded = kernels.dequantize(kind.id, raw, rows.size).reshape(ROWS, COLUMNS)
    return HostTable(torch.from_numpy(raw), name, COLUMNS, keep_decoded_bytes), torch.from_numpy(decoded)


class CountingEngine(SyncEngine):
    def __init__(self) -> None:
        super().__init__()
        self.copied: list[int] = []

    def copy(self, target: torch.Tensor, source: torch.Tensor, after: object) -> object:
        self.copied.append(target.numel())
        return super().copy(target, source, after)


@pytest.mark.parametrize("name", TYPES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rows_are_the_tables_in_any_order_and_number(name: str, dtype: torch.dtype) -> None:
    table, whole = a_table(name)
    ids = torch.tensor([102, 0, 7, 7, 31])
    assert torch.equal(table.rows(ids, dtype), whole[ids].to(dtype))
    assert table.rows(ids[:0], dtype).shape == (0, COLUMNS)
    # Never a view: HostEmbedding scales them in place.
    assert table.rows(ids, dtype).untyped_storage().data_ptr() != table.raw.untyped_storage().data_ptr()


@pytest.mark.parametrize("name", TYPES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("engine", [SyncEngine, lambda: ThreadedEngine(late=1.0), lambda: ThreadedEngine(late=0.3)])
def test_streamed_tiles_are_whole_while_they_are_used_however_late_copies_are(
    name: str, dtype: torch.dtype, engine: type[CopyEngine]
) -> None:
    table, whole = a_table(name)
    copying = engine()
    seen = []
    for _ in range(2):
        for first, tile in table.streamed_tiles(TILE, CPU, dtype, copying):
            assert torch.equal(tile, whole[first : first + TILE].to(dtype))
            seen.append((first, len(tile)))
    copying.close()
    assert seen == 2 * [(first, min(TILE, ROWS - first)) for first in range(0, ROWS, TILE)]


class OrderOfUse(SyncEngine):
    """Marks are numbers of uses; a copy notes the use that it waits for."""

    def __init__(self) -> None:
        super().__init__()
        self.used = 0
        self.copies: list[tuple[int, int]] = []

    def mark(self) -> int:
        return self.used

    def copy(self, target: torch.Tensor, source: torch.Tensor, after: int) -> object:
        self.copies.append((target.data_ptr(), after))
        return super().copy(target, source, after)


def test_the_next_tile_is_copied_during_the_present_one_and_after_the_last_use_of_its_buffer() -> None:
    table, _ = a_table("Q6_K")
    engine = OrderOfUse()
    for index, _ in enumerate(table.streamed_tiles(TILE, CPU, torch.bfloat16, engine)):
        assert len(engine.copies) == min(index + 2, 11)
        engine.used = index + 1
    buffers = [buffer for buffer, _ in engine.copies]
    assert len(set(buffers)) == 2
    assert buffers == (buffers[:2] * 6)[:11]
    # Tile k lies where tile k-2 lay, whose use is number k-1.
    assert [after for _, after in engine.copies] == [0, *range(10)]


def test_a_pass_that_is_broken_off_waits_for_the_copy_under_way() -> None:
    table, whole = a_table("Q8_0")
    engine = ThreadedEngine(late=1.0)
    tiles = table.streamed_tiles(TILE, CPU, torch.float32, engine)
    next(tiles)
    tiles.close()
    assert all(half.started is not None and half.started.done() for half in engine._held) and not engine._held
    for first, tile in table.streamed_tiles(TILE, CPU, torch.float32, engine):
        assert torch.equal(tile, whole[first : first + TILE])
    engine.close()


@pytest.mark.parametrize("name", TYPES)
def test_on_the_hosts_own_processor_nothing_is_copied(name: str) -> None:
    table, whole = a_table(name)
    engine = CountingEngine()
    for first, tile in table.tiles(TILE, CPU, torch.bfloat16, engine):
        assert torch.equal(tile, whole[first : first + TILE].bfloat16())
        assert (tile.untyped_storage().data_ptr() == table.raw.untyped_storage().data_ptr()) == (name == "BF16")
    assert engine.copied == []


def test_streaming_takes_two_raw_tiles_and_one_decoded() -> None:
    table, _ = a_table("Q6_K")
    with StorageWatch(table.raw) as watch:
        for _ in table.streamed_tiles(50, CPU, torch.bfloat16, SyncEngine()):
            pass
    raw, decoded = 50 * 210, 50 * COLUMNS * 2
    assert 2 * raw + decoded < watch.peak_bytes < 2 * raw + decoded + 4 * 50 * COLUMNS


def test_a_decoded_copy_is_kept_only_where_it_fits() -> None:
    size = ROWS * COLUMNS * 2
    for keep, kept in ((size, True), (size - 1, False)):
        table, whole = a_table("Q6_K", keep)
        passes = [list(table.tiles(TILE, CPU, torch.bfloat16, SyncEngine())) for _ in range(2)]
        memory = [{tile.untyped_storage().data_ptr() for _, tile in tiles} for tiles in passes]
        assert (memory[0] == memory[1] and len(memory[0]) == 1) == kept or not kept
        assert (table._kept is not None) == kept
        if kept:
            assert torch.equal(torch.cat([tile for _, tile in passes[1]]), whole.bfloat16())
            # Another dtype is decoded anew rather than rounded twice.
            table.keep_decoded_bytes = 2 * size
            exact = torch.cat([tile for _, tile in table.tiles(TILE, CPU, torch.float32, SyncEngine())])
            assert torch.equal(exact, whole)


def test_a_table_over_a_weight_shares_its_memory() -> None:
    weight = torch.nn.Parameter(torch.randn(6, 32, dtype=torch.float16))
    table = HostTable.of(weight)
    assert (table.type_name, tuple(table.shape)) == ("F16", (6, 32))
    assert table.raw.data_ptr() == weight.data_ptr()
    assert torch.equal(table.rows(torch.arange(6), torch.float16), weight)


def test_bytes_that_cannot_be_a_table_are_refused() -> None:
    with pytest.raises(InputError, match="type IQ2_XXS can't be decoded") as refusal:
        HostTable(torch.zeros(2, 66, dtype=torch.uint8), "IQ2_XXS", 256)
    assert "bf16" in (refusal.value.hint or "")
    with pytest.raises(InputError, match=r"rows of 210 bytes, found \(2, 209\)"):
        HostTable(torch.zeros(2, 209, dtype=torch.uint8), "Q6_K", 256)


@pytest.mark.gpu
@pytest.mark.parametrize("name", TYPES)
def test_a_card_sees_the_same_tiles(name: str) -> None:
    from amigo_local.training.cuda_engine import CudaEngine

    table, whole = a_table(name)
    card = torch.device("cuda", 0)
    engine = CudaEngine(card)
    for first, tile in table.tiles(TILE, card, torch.bfloat16, engine):
        assert torch.equal(tile.cpu(), whole[first : first + TILE].bfloat16())
    engine.close()
