"""What only a card can show: the product's own assembly on CUDA, its head, and the benchmark's cap and outcomes."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import torch

from amigo_local.domain.recipe import TrainSettings
from amigo_local.domain.units import MIB, parse_size
from amigo_local.training.logit_rule import LogitRule
from amigo_local.training.tiled_head import token_statistics
from benchmarks import qlora_12b
from benchmarks.qlora_12b_records import Measurement, Setup, Task
from tests.support.streamed_training import LAYERS, SETTINGS, TinyModel, plan_for
from tests.training.conftest import files

pytestmark = pytest.mark.gpu


@pytest.fixture(scope="module")
def card() -> torch.device:
    if torch.version.cuda is None:
        pytest.skip(f"needs torch built for CUDA, found {torch.__version__}: install it from an index with CUDA builds")
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA card and its driver: nvidia-smi shows neither here")
    return torch.device("cuda", 0)


@pytest.fixture(scope="module", params=["gemma3", "llama"])
def model(request: pytest.FixtureRequest, card: torch.device, tmp_path_factory: pytest.TempPathFactory) -> TinyModel:
    return TinyModel(tmp_path_factory.mktemp("gpu"), request.param)


@pytest.fixture
def deterministic() -> Iterator[None]:
    """Without it a kernel may add up in whatever order its blocks finish, and a run differ from itself."""
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(before)


def train_on_card(model: TinyModel, out: Path, settings: TrainSettings, **levers: Any) -> dict[str, bytes]:
    """Adapter and log, as `train` assembles it all on a card."""
    plan = plan_for(model.family, device="cuda", optimizer="paged_adamw_8bit", **levers)
    assert model.train(out, settings, plan)["device"] == "cuda:0"
    written = files(out)
    shutil.rmtree(out)
    return written


@pytest.mark.parametrize("method", ["sft", "dpo"])
def test_streamed_is_bit_identical_to_resident_through_the_ring_and_from_pinned_memory(
    model: TinyModel, deterministic: None, tmp_path: Path, method: Any
) -> None:
    settings, layers, out = msgspec.structs.replace(SETTINGS, method=method), LAYERS[model.family], tmp_path / "out"
    expected = train_on_card(model, out, settings, resident=layers, slots=0)
    assert train_on_card(model, out, settings, resident=layers, slots=0) == expected, "differs from itself already"
    for staging in ("ring", "pinned"):
        for resident, slots in ((0, 1), (0, 2), (2, 3)):
            streamed = train_on_card(model, out, settings, resident=resident, slots=slots, staging=staging)
            assert streamed == expected, f"{staging}, {resident} resident, {slots} slots"


def test_checkpoints_that_wait_on_the_host_and_tiled_mlps_change_nothing_but_rounding(
    model: TinyModel, deterministic: None, tmp_path: Path
) -> None:
    settings = msgspec.structs.replace(SETTINGS, lora=msgspec.structs.replace(SETTINGS.lora, dropout=0.0))
    expected = train_on_card(model, tmp_path / "out", settings)
    offloaded = train_on_card(model, tmp_path / "out", settings, offload_checkpoints=True)
    assert offloaded == expected
    tiled = train_on_card(model, tmp_path / "out", settings, mlp_tile_tokens=32)
    ours, theirs = (_losses(written) for written in (tiled, expected))
    assert ours == pytest.approx(theirs, rel=2e-2)


def _losses(written: dict[str, bytes]) -> list[float]:
    lines = [msgspec.json.decode(line) for line in written["training_log.jsonl"].splitlines()]
    return [line["loss"] for line in lines if "loss" in line]


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 2e-2)])
@pytest.mark.parametrize("softcap", [None, 30.0])
def test_the_head_on_a_card_equals_the_head_on_a_processor(
    card: torch.device, dtype: torch.dtype, tolerance: float, softcap: float | None
) -> None:
    from amigo_local.training.cuda_engine import CudaEngine
    from amigo_local.training.host_embedding import HostHead
    from tests.support.host_model import host_table

    random = np.random.default_rng(0)
    table = host_table(torch.from_numpy(random.standard_normal((3000, 256), dtype=np.float32) * 0.05), "Q6_K")
    hidden = torch.from_numpy(random.standard_normal((200, 256), dtype=np.float32)).to(dtype)
    targets = torch.from_numpy(random.integers(0, 3000, 200))
    weights = torch.from_numpy(random.random(200, dtype=np.float32))

    def on(device: torch.device, engine: Any) -> tuple[torch.Tensor, torch.Tensor]:
        head = HostHead(table, dtype, device, 700, engine)
        mine = hidden.to(device, copy=True).requires_grad_()
        log_probs = token_statistics(mine, targets.to(device), head, LogitRule(softcap=softcap)).log_probs
        (gradient,) = torch.autograd.grad((log_probs * weights.to(device)).sum(), mine)
        return log_probs.detach().cpu(), gradient.cpu().float()

    engine = CudaEngine(card)
    for found, expected in zip(on(card, engine), on(torch.device("cpu"), None), strict=True):
        assert float((found - expected).norm() / expected.norm()) < tolerance
    engine.close()


def test_the_cap_holds_the_allocator_and_says_so_when_it_is_reached(card: torch.device) -> None:
    from benchmarks.qlora_12b_ours import cap_card

    setup = Setup(scratch="", shape=None, vram="1GiB", ram="16GiB", card="", steps=1, seconds=1.0)
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    try:
        cap = cap_card(setup)
        assert cap == int(0.93 * parse_size("1GiB")) - 350 * MIB
        held = torch.empty(cap - torch.cuda.memory_reserved() - 8 * MIB, dtype=torch.uint8, device=card)
        with pytest.raises(torch.OutOfMemoryError):
            torch.empty(64 * MIB, dtype=torch.uint8, device=card)
        del held
        assert torch.cuda.max_memory_reserved() <= cap
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0, 0)
        torch.cuda.empty_cache()


def test_moments_of_a_resumed_run_are_paged_again(card: torch.device) -> None:
    import io

    from bitsandbytes.optim import PagedAdamW8bit

    from amigo_local.training.checkpointed_trainer import page_out

    def made() -> tuple[torch.nn.Parameter, Any]:
        parameter = torch.nn.Parameter(torch.ones(512, 256, device=card))
        optimizer = PagedAdamW8bit([parameter], lr=1e-2)
        step(parameter, optimizer)
        return parameter, optimizer

    def step(parameter: torch.nn.Parameter, optimizer: Any) -> None:
        parameter.grad = torch.linspace(-1, 1, parameter.numel(), device=card).view_as(parameter)
        optimizer.step()

    (kept, first), (resumed, second) = made(), made()
    saved = io.BytesIO()
    torch.save(first.state_dict(), saved)
    saved.seek(0)
    second.load_state_dict(torch.load(saved, map_location="cpu", weights_only=True))
    held = torch.cuda.memory_allocated(card)
    page_out(second)
    assert torch.cuda.memory_allocated(card) == held - 2 * resumed.numel()
    (state,) = second.state.values()
    assert all(state[name].is_paged for name in ("state1", "state2"))
    step(kept, first)
    step(resumed, second)
    assert torch.equal(kept, resumed)


def in_own_process(task: Task, vram: str, scratch: Path) -> Measurement:
    setup = Setup(scratch=str(scratch), shape=None, vram=vram, ram="16GiB", card="a card", steps=2, seconds=5.0)
    return qlora_12b.in_own_process(setup, task, timeout=600)


@pytest.fixture(scope="module")
def scratch(card: torch.device, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("benchmark")


@pytest.mark.parametrize("staging", ["ring", "pinned"])
def test_the_benchmarks_streamed_side_stays_below_its_cap_and_repeats_the_resident_losses(
    scratch: Path, staging: Any
) -> None:
    streamed = in_own_process(Task(side="streamed", tokens=128, rank=4, staging=staging), "1GiB", scratch)
    resident = in_own_process(Task(side="resident", tokens=128, rank=4), "1GiB", scratch)
    assert (streamed.outcome, resident.outcome) == ("measured", "measured"), streamed.message or resident.message
    assert [step.loss for step in streamed.steps] == [step.loss for step in resident.steps]
    assert streamed.memory is not None
    assert streamed.cap_bytes is not None
    assert 0 < streamed.memory.peak.tensors <= streamed.memory.peak.reserved <= streamed.cap_bytes
    assert streamed.memory.peak.context > 50 * MIB, "CUDA's own, which the driver counts"
    assert all(step.traffic.nbytes > 0 and step.traffic.seconds_copying > 0 for step in streamed.steps)
    assert streamed.kernels
    assert not any("math" in name for name in streamed.kernels)


def test_the_peer_under_a_cap_that_is_too_small_runs_out_where_it_loads(scratch: Path) -> None:
    found = in_own_process(Task(side="peer", tokens=128, rank=4), "378MiB", scratch)
    assert (found.outcome, found.phase) == ("out of memory", "loading"), found.message
    assert found.frames
