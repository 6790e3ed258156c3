"""Copies beside computing: their order, the staging ring, what is measured, and errors of the staging thread."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Iterator
from random import Random

import pytest
import torch

from amigo_local.domain.errors import AmigoError
from amigo_local.training.copy_engine import CopyEngine, SyncEngine, ThreadedEngine, Traffic
from amigo_local.training.layer_pack import LayerPack
from amigo_local.training.pinned_memory import PinnedMemory
from amigo_local.training.staging_ring import DeviceEngine, StagingRing
from tests.support.simulated_device import Event, SimulatedDevice

CHUNK = 64


def some_bytes(count: int, seed: int) -> torch.Tensor:
    return torch.randint(0, 256, (count,), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


def ring_on(device: SimulatedDevice, chunks: int = 3) -> DeviceEngine:
    return DeviceEngine(device, StagingRing(device, CHUNK, chunks))


ENGINES: dict[str, Callable[[], CopyEngine]] = {
    "sync": SyncEngine,
    "thread": ThreadedEngine,
    "late thread": lambda: ThreadedEngine(late=1.0),
    "thread, now and then late": lambda: ThreadedEngine(late=0.3, random=Random(1)),
    "ring": lambda: ring_on(SimulatedDevice(Random(1))),
    "late ring": lambda: ring_on(SimulatedDevice()),
    "ring of one chunk": lambda: ring_on(SimulatedDevice(), chunks=1),
    "no ring": lambda: DeviceEngine(SimulatedDevice(Random(1)), None),
}


@pytest.fixture(params=ENGINES)
def engine(request: pytest.FixtureRequest) -> Iterator[CopyEngine]:
    made = ENGINES[request.param]()
    yield made
    made.close()


@pytest.mark.parametrize("count", [1, 2, CHUNK - 1, CHUNK, CHUNK + 1, 5 * CHUNK + 17])
def test_what_was_waited_for_has_arrived_whole(engine: CopyEngine, count: int) -> None:
    source, target = some_bytes(count, seed=1), torch.zeros(count, dtype=torch.uint8)
    engine.wait(engine.copy(target, source, engine.mark()))
    assert torch.equal(target, source)


def test_of_copies_into_one_target_the_last_one_prevails(engine: CopyEngine) -> None:
    """A prefetched layer that turns out not to be needed is never waited for."""
    target = torch.zeros(300, dtype=torch.uint8)
    sources = [some_bytes(300, seed) for seed in range(12)]
    for unneeded, needed in itertools.pairwise(sources):
        engine.copy(target, unneeded, engine.mark())
        engine.wait(engine.copy(target, needed, engine.mark()))
        assert torch.equal(target, needed)


def test_many_copies_that_are_waited_for_late_all_arrive(engine: CopyEngine) -> None:
    random = Random(5)
    pairs = []
    for seed in range(40):
        source = some_bytes(random.randrange(1, 6 * CHUNK), seed)
        pairs.append((torch.zeros_like(source), source))
    tickets = [engine.copy(target, source, engine.mark()) for target, source in pairs]
    for index in random.sample(range(40), 40):
        engine.wait(tickets[index])
        assert torch.equal(*pairs[index])


def test_closing_finishes_what_is_under_way_and_may_be_done_twice(engine: CopyEngine) -> None:
    source, target = some_bytes(500, seed=3), torch.zeros(500, dtype=torch.uint8)
    engine.copy(target, source, engine.mark())
    engine.close()
    engine.close()
    assert torch.equal(target, source)


def test_every_byte_and_copy_is_counted(engine: CopyEngine) -> None:
    before = engine.traffic()
    for seed in range(4):
        source = some_bytes(100, seed)
        engine.wait(engine.copy(torch.zeros_like(source), source, engine.mark()))
    moved = engine.traffic().since(before)
    assert (moved.copies, moved.nbytes) == (4, 400)
    assert moved.seconds_copying > 0
    assert 0 <= moved.hidden <= 1


def test_a_late_thread_brings_nothing_that_is_not_waited_for() -> None:
    engine = ThreadedEngine(late=1.0)
    source, target = some_bytes(100, seed=1), torch.zeros(100, dtype=torch.uint8)
    ticket = engine.copy(target, source, None)
    assert not target.any()
    engine.wait(ticket)
    assert torch.equal(target, source)
    engine.close()


# The ring, on a card that lets nothing take place before it must.


def test_a_copy_does_not_begin_before_the_point_it_comes_after() -> None:
    device = SimulatedDevice()
    engine = ring_on(device)
    last_use = Event()
    target, source = torch.zeros(CHUNK, dtype=torch.uint8), some_bytes(CHUNK, seed=1)
    ticket = engine.copy(target, source, last_use)
    ticket.submitted.result()
    while device.step():
        pass
    assert not target.any()
    last_use.is_reached = True
    engine.wait(ticket)
    assert torch.equal(target, source)
    engine.close()


def test_the_ring_asks_the_card_for_its_chunks_once() -> None:
    asked: list[int] = []

    class Counting(SimulatedDevice):
        def page_locked(self, nbytes: int) -> torch.Tensor:
            asked.append(nbytes)
            return super().page_locked(nbytes)

    device = Counting()
    engine = ring_on(device)
    for seed in range(3):
        source = some_bytes(5 * CHUNK + 1, seed)
        engine.wait(engine.copy(torch.zeros_like(source), source, engine.mark()))
    assert asked == [CHUNK] * 3
    assert device.sent == ([CHUNK] * 5 + [1]) * 3
    engine.close()
    assert device.closed


@pytest.mark.parametrize("chunk_bytes", [0, 3, 96, 1000])
def test_chunks_that_the_pinned_allocator_would_round_up_are_refused(chunk_bytes: int) -> None:
    with pytest.raises(ValueError, match="power of two"):
        StagingRing(SimulatedDevice(), chunk_bytes)


def test_waiting_is_measured_only_where_computing_stood_still() -> None:
    """Ticks of the simulated card: a copy that has arrived by itself costs nothing, one that hasn't is waited for."""
    device = SimulatedDevice()
    engine = ring_on(device)
    source = some_bytes(3 * CHUNK, seed=1)
    hidden = engine.copy(torch.zeros_like(source), source, engine.mark())
    hidden.submitted.result()
    while device.step():
        pass
    engine.wait(hidden)
    assert (engine.traffic().waited, engine.traffic().seconds_waited) == (0, 0.0)
    engine.wait(engine.copy(torch.zeros_like(source), source, engine.mark()))
    moved = engine.traffic()
    assert (moved.copies, moved.waited) == (2, 1)
    # Per copy one stamp at its start, one after each chunk, one at its end; the wait began before all five of them.
    assert moved.seconds_copying == 2 * 4.0
    assert moved.seconds_waited == 6.0
    engine.close()


def test_figures_of_copies_under_way_are_not_waited_for() -> None:
    device = SimulatedDevice()
    engine = ring_on(device)
    ticket = engine.copy(torch.zeros(CHUNK, dtype=torch.uint8), some_bytes(CHUNK, 1), Event())
    ticket.submitted.result()
    assert engine.traffic() == Traffic(copies=1, nbytes=CHUNK)
    ticket.after.is_reached = True
    engine.close()


def test_rates_come_from_the_time_spent_copying() -> None:
    moved = Traffic(copies=4, nbytes=22_000_000_000, waited=1, seconds_copying=2.0, seconds_waited=0.5)
    assert moved.gigabytes_per_second == 11.0
    assert moved.hidden == 0.75
    assert Traffic().gigabytes_per_second is None
    assert Traffic().hidden == 1.0
    assert moved.since(moved) == Traffic()


class Failing(SimulatedDevice):
    """Breaks at the third copy that is sent to it, once it may."""

    def __init__(self) -> None:
        super().__init__()
        self.may_break = threading.Event()

    def send(self, target: torch.Tensor, source: torch.Tensor) -> None:
        if len(self.sent) == 2:
            self.may_break.wait()
            raise RuntimeError("CUDA error: an illegal memory access was encountered")
        super().send(target, source)


def test_an_error_of_the_staging_thread_is_raised_by_every_later_call() -> None:
    device = Failing()
    engine = ring_on(device)
    source = some_bytes(CHUNK, seed=1)
    fine = engine.copy(torch.zeros_like(source), source, engine.mark())
    engine.wait(fine)
    long = some_bytes(4 * CHUNK, seed=2)
    broken, behind = (engine.copy(torch.zeros_like(long), long, engine.mark()) for _ in range(2))
    device.may_break.set()
    for ticket in (broken, behind, fine):
        with pytest.raises(AmigoError, match="illegal memory access") as caught:
            engine.wait(ticket)
        assert isinstance(caught.value.__cause__, RuntimeError)
    with pytest.raises(AmigoError, match="illegal memory access"):
        engine.copy(torch.zeros_like(source), source, engine.mark())
    with pytest.raises(AmigoError, match="illegal memory access"):
        engine.close()
    engine.close()


def test_an_error_that_nobody_waited_for_is_raised_at_the_end() -> None:
    device = Failing()
    device.may_break.set()
    engine = ring_on(device)
    source = some_bytes(4 * CHUNK, seed=1)
    engine.copy(torch.zeros_like(source), source, engine.mark())
    with pytest.raises(AmigoError, match="illegal memory access"):
        engine.close()


def test_a_fault_of_our_own_on_the_staging_thread_comes_out_as_it_is() -> None:
    class Faulty(SimulatedDevice):
        def send(self, target: torch.Tensor, source: torch.Tensor) -> None:
            raise TypeError("no failure of a card")

    engine = ring_on(Faulty())
    source = some_bytes(CHUNK, seed=1)
    ticket = engine.copy(torch.zeros_like(source), source, engine.mark())
    with pytest.raises(TypeError, match="no failure of a card"):
        engine.wait(ticket)
    with pytest.raises(TypeError, match="no failure of a card"):
        engine.close()


def test_targets_that_do_not_fit_are_refused_at_once() -> None:
    engine = ring_on(SimulatedDevice())
    with pytest.raises(ValueError, match=r"\(4,\) into"):
        engine.copy(torch.zeros(3, dtype=torch.uint8), some_bytes(4, 1), engine.mark())
    with pytest.raises(ValueError, match="float32"):
        engine.copy(torch.zeros(4), some_bytes(4, 1), engine.mark())
    engine.close()
    with pytest.raises(RuntimeError, match="closed"):
        engine.copy(torch.zeros(4, dtype=torch.uint8), some_bytes(4, 1), engine.mark())


class Pages:
    """Stands for cudaHostRegister: keeps which memory is locked, and refuses beyond a limit."""

    def __init__(self, limit: int) -> None:
        self.limit, self.locked = limit, dict[int, int]()

    def lock(self, memory: torch.Tensor) -> None:
        if sum(self.locked.values()) + memory.numel() > self.limit:
            raise RuntimeError("CUDA error: out of memory")
        self.locked[memory.data_ptr()] = memory.numel()

    def unlock(self, memory: torch.Tensor) -> None:
        del self.locked[memory.data_ptr()]


def test_pinned_packs_are_equal_copies_in_whole_pages_and_are_unlocked_at_the_end() -> None:
    pages, packs = Pages(limit=20_000), [LayerPack(some_bytes(5000, seed), ()) for seed in range(3)]
    memory = PinnedMemory(pages)
    held = [memory.hold(pack) for pack in packs]
    for pack, pinned in zip(packs, held, strict=True):
        assert torch.equal(pack.flat, pinned.flat)
        assert pinned.flat.data_ptr() % 4096 == 0
    assert sorted(pages.locked) == sorted(pinned.flat.data_ptr() for pinned in held)
    memory.close()
    assert not pages.locked


def test_memory_that_can_not_be_locked_is_told_with_the_way_out() -> None:
    memory = PinnedMemory(Pages(limit=6000))
    memory.hold(LayerPack(some_bytes(5000, 1), ()))
    with pytest.raises(AmigoError, match="can't page-lock") as caught:
        memory.hold(LayerPack(some_bytes(5000, 2), ()))
    assert "train.memory.staging" in caught.value.hint


@pytest.mark.gpu
@pytest.mark.parametrize("staging", ["ring", "pinned"])
def test_bytes_reach_a_card_through_the_ring_and_from_pinned_memory(staging: str) -> None:
    from amigo_local.training.cuda_engine import CudaDevice, CudaEngine

    card = torch.device("cuda", 0)
    engine, memory = CudaEngine(card, staging, chunk_bytes=1 << 20, chunks=2), PinnedMemory(CudaDevice(card))
    busy = torch.randn(4096, 4096, device=card)
    for seed in range(8):
        pack = LayerPack(some_bytes((9 << 20) + seed, seed), ())
        source = memory.hold(pack).flat if staging == "pinned" else pack.flat
        target = torch.zeros(source.numel(), dtype=torch.uint8, device=card)
        kept = target.clone()
        for _ in range(20):
            busy = (busy @ busy).clamp(-1, 1)  # keeps the order of computing far behind the host
        kept.copy_(target)
        engine.wait(engine.copy(target, source, engine.mark()))
        assert not kept.any(), "the copy overtook what came before it"
        assert torch.equal(target.cpu(), pack.flat)
    moved = engine.traffic()
    assert moved.copies == 8
    assert moved.seconds_copying > 0
    engine.close()
    memory.close()
