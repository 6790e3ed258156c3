"""What the gauges read: this process' memory, and the copies since the last look."""

from __future__ import annotations

import gc

import psutil
import pytest
import torch

from amigo_local.domain.units import MIB
from amigo_local.training.copy_engine import SyncEngine, Traffic
from amigo_local.training.gauges import Gauges, gauges_for, read_ram


class Streaming:
    def __init__(self) -> None:
        self.now = Traffic()

    def traffic(self) -> Traffic:
        return self.now


def test_rates_are_those_since_the_last_reading() -> None:
    streaming = Streaming()
    streaming.now = Traffic(copies=9, nbytes=10**12, waited=9, seconds_copying=900.0, seconds_waited=900.0)
    gauges = Gauges((), streaming)
    assert gauges.read() == {}  # what came before the run doesn't count
    for copied, seconds, waited in ((22e9, 2.0, 0.5), (5e9, 0.5, 0.0)):
        before = streaming.now
        streaming.now = Traffic(
            copies=before.copies + 48,
            nbytes=before.nbytes + int(copied),
            waited=before.waited + 1,
            seconds_copying=before.seconds_copying + seconds,
            seconds_waited=before.seconds_waited + waited,
        )
        read = gauges.read()
        assert read["pcie_bytes_per_second"] == pytest.approx(copied / seconds)
        assert read["copies_hidden"] == pytest.approx(1 - waited / seconds)
    assert gauges.read() == {}


def test_a_real_engine_is_read() -> None:
    clock = iter(range(100)).__next__
    engine = SyncEngine(clock=lambda: float(clock()))
    gauges = Gauges((), engine)
    engine.copy(torch.empty(4096, dtype=torch.uint8), torch.zeros(4096, dtype=torch.uint8), engine.mark())
    assert gauges.read() == {"pcie_bytes_per_second": pytest.approx(4096), "copies_hidden": 0.0}


def test_ram_goes_up_with_what_is_held_and_down_again_and_its_peak_stays() -> None:
    before = read_ram()
    assert before["ram_bytes"] == pytest.approx(psutil.Process().memory_info().rss, rel=0.02)
    held = torch.ones(64 * MIB, dtype=torch.uint8)
    during = read_ram()
    assert during["ram_bytes"] - before["ram_bytes"] > 0.9 * held.numel()
    assert during["ram_peak_bytes"] > during["ram_bytes"] - 2 * MIB  # the kernel counts both a little late
    del held
    gc.collect()
    after = read_ram()
    assert after["ram_bytes"] < during["ram_bytes"] - 0.9 * 64 * MIB
    assert after["ram_peak_bytes"] >= during["ram_peak_bytes"]


def test_without_a_card_no_cuda_call_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: object) -> None:
        raise AssertionError("asked CUDA")

    for name in ("mem_get_info", "memory_allocated", "max_memory_allocated", "synchronize"):
        monkeypatch.setattr(torch.cuda, name, refuse)
    assert set(gauges_for(torch.device("cpu")).read()) == {"ram_bytes", "ram_peak_bytes"}
    with pytest.raises(AssertionError, match="asked CUDA"):
        gauges_for(torch.device("cuda", 0)).read()


@pytest.mark.gpu
def test_on_a_card_vram_goes_up_with_what_is_held() -> None:
    gauges = gauges_for(torch.device("cuda", 0))
    before = gauges.read()
    held = torch.ones(256 * MIB, dtype=torch.uint8, device="cuda")
    during = gauges.read()
    assert during["vram_bytes"] - before["vram_bytes"] == held.numel()
    assert during["vram_card_bytes"] - before["vram_card_bytes"] >= held.numel()
    del held
    assert gauges.read()["vram_peak_bytes"] >= during["vram_bytes"]
