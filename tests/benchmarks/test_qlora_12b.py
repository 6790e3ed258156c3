"""The GPU benchmark's own arithmetic and bookkeeping; what it measures needs a card (tests/training/test_gpu.py)."""

from __future__ import annotations

import itertools
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch

from amigo_local.domain.memory_plan import Batching, MemoryPlan, Part
from amigo_local.domain.recipe import TrainSettings
from amigo_local.domain.units import GIB, MIB
from amigo_local.training.copy_engine import Traffic
from amigo_local.training.memory_formula import Job, Levers
from amigo_local.training.memory_plan import card_plan
from amigo_local.training.rehearsal import Peak
from benchmarks.qlora_12b import TOKENS, run, schedule, small_schedule, unique
from benchmarks.qlora_12b_card import parse_about
from benchmarks.qlora_12b_child import phase_of, ran_out
from benchmarks.qlora_12b_records import Measurement, Memory, Method, Results, Setup, Side, Step, Task
from benchmarks.qlora_12b_store import SMALL_CONFIG, make_peer_checkpoint, make_store
from benchmarks.qlora_12b_tables import levers_of, memory_lines, speed_lines, target_lines
from tests.support.planning import GEMMA_3_12B, machine

SETUP = Setup(scratch="/nowhere", shape=None, vram="6GiB", ram="16GiB", card="a card", steps=2, seconds=1.0)
PLAN = MemoryPlan(
    device="cuda",
    batching=Batching(micro_batch=1, accumulation=4),
    max_length_tokens=2048,
    optimizer="paged_adamw_8bit",
    recompute=True,
    resident_layers=21,
    streamed_layers=27,
    vram=(Part("CUDA context", 350 * MIB), Part("all else", 5000 * MIB)),
    tokens_per_second=150.0,
)


def measurement(task: Task, seconds: float, *, reserved: int = 5000 * MIB, **traffic: Any) -> Measurement:
    return Measurement(
        task=task,
        card="a card",
        outcome="measured",
        plan=PLAN,
        steps=(Step(seconds=seconds, loss=1.5, traffic=Traffic(**traffic)),),
        memory=Memory(
            peak=Peak(reserved - 100 * MIB, reserved, 350 * MIB),
            driver_difference_bytes=None,
            driver_process_bytes=None,
            rss_bytes=0,
        ),
    )


def test_random_weights_open_as_a_store_and_the_peer_computes_the_same_logits_from_its_checkpoint(
    tmp_path: Path,
) -> None:
    from transformers import AutoModelForCausalLM

    from amigo_local.training.nf4_model import build_model
    from amigo_local.training.nf4_store import open_store

    config = SMALL_CONFIG | {"num_hidden_layers": 2, "vocab_size": 300}
    store = make_store(config, tmp_path)
    written = (store / "index.json").stat().st_mtime_ns
    assert make_store(config, tmp_path) == store
    assert (store / "index.json").stat().st_mtime_ns == written, "made only once"
    checkpoint = make_peer_checkpoint(store, tmp_path)
    theirs = AutoModelForCausalLM.from_pretrained(checkpoint, device_map={"": "cpu"}, local_files_only=True)
    for module in theirs.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False
    ids = torch.arange(64)[None]
    with torch.no_grad():
        ours = build_model(open_store(store), torch.bfloat16)(ids).logits
        assert torch.equal(ours, theirs(ids).logits)
    assert ours.isfinite().all()
    assert 0.3 < float(ours.float().std()) < 10, "logits of a model, not of noise or of nothing"


def test_at_11_gb_a_second_a_step_takes_the_longer_of_computing_and_copying() -> None:
    waited = Traffic(copies=1, nbytes=22_000_000_000, waited=1, seconds_copying=1.0, seconds_waited=0.5)
    assert Step(seconds=2.0, loss=0.0, traffic=waited).scaled_seconds == 2.0, "22 GB take two seconds"
    assert Step(seconds=4.0, loss=0.0, traffic=waited).scaled_seconds == 3.5, "hidden behind what wasn't waiting"


def test_a_cut_run_goes_on_with_what_is_missing_or_failed(tmp_path: Path) -> None:
    path = tmp_path / "results.jsonl"
    first, second, third = tasks = [Task(side="streamed", tokens=tokens) for tokens in (256, 512, 1024)]
    results = Results(path, "a card")
    results.add(measurement(first, 1.0))
    results.add(Measurement(task=second, card="a card", outcome="failed", message="no driver"))
    results.add(msgspec.structs.replace(measurement(third, 1.0), card="another card"))
    whole = path.read_bytes()
    path.write_bytes(whole + b'{"task": {"side"')
    again = Results(path, "a card")
    assert path.read_bytes() == whole
    assert again.open_tasks(tasks) == [second, third]
    assert again.all == results.all[:2]


def test_nothing_is_begun_that_would_not_end_in_time(tmp_path: Path) -> None:
    results = Results(tmp_path / "results.jsonl", "a card")
    tasks = [Task(side="streamed", tokens=256)]
    assert run(SETUP, tasks, results, time.monotonic() + 5) == tasks
    assert not results.all


def test_the_schedule_begins_with_the_peak_and_ends_with_everything_measured() -> None:
    tasks = unique(schedule())
    assert tasks[:3] == [
        Task(side="streamed", tokens=2048, rank=32),
        Task(side="peer", tokens=2048, rank=32),
        Task(side="resident", tokens=2048, rank=32),
    ]
    sides: tuple[Side, ...] = ("streamed", "resident")
    methods: tuple[Method, ...] = ("sft", "dpo")
    for side, method, rank, tokens in itertools.product(sides, methods, (16, 32), TOKENS):
        assert Task(side=side, method=method, rank=rank, tokens=tokens) in tasks
    for side, tokens, repetition in itertools.product(sides, TOKENS, range(3)):
        assert Task(side=side, tokens=tokens, repetition=repetition) in tasks


class _RunsOutBackward(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, value: torch.Tensor) -> torch.Tensor:
        return value * 2

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> torch.Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory")


def from_pretrained() -> None:
    try:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 MiB")
    except torch.OutOfMemoryError as error:
        text = f"conversion errors: {error}"
    raise RuntimeError(text)  # as transformers' loader does, which collects what it meets


def training_step(work: Callable[[], object]) -> None:
    work()


def run_out_backward() -> None:
    apply: Any = _RunsOutBackward.apply
    apply(torch.ones(1, requires_grad=True)).backward()


def run_out_stepping() -> None:
    def closure() -> float:
        raise torch.OutOfMemoryError("CUDA out of memory")

    torch.optim.SGD([torch.ones(1, requires_grad=True)]).step(closure)


def run_out_forward() -> None:
    raise torch.OutOfMemoryError("CUDA out of memory")


@pytest.mark.parametrize(
    ("phase", "work"),
    [
        ("loading", from_pretrained),
        ("preparing", run_out_forward),
        ("forward pass", lambda: training_step(run_out_forward)),
        ("backward pass", lambda: training_step(run_out_backward)),
        ("optimizer step", lambda: training_step(run_out_stepping)),
    ],
)
def test_the_phase_in_which_memory_ran_out_is_read_off_the_traceback(phase: str, work: Callable[[], object]) -> None:
    def wrapped() -> None:
        try:
            work()
        except RuntimeError as error:
            raise ValueError("a trainer's own words") from error

    with pytest.raises(ValueError, match="own words") as caught:
        wrapped()
    found = ran_out(caught.value)
    assert found is not None
    assert phase_of(found) == phase
    assert ran_out(ValueError("something else")) is None


def test_targets_are_judged_by_the_worst_and_unmeasured_ones_are_said_to_be() -> None:
    streamed, resident = Task(side="streamed", tokens=2048), Task(side="resident", tokens=2048)
    good = [measurement(streamed, 1.0), measurement(resident, 0.98)]
    lines = list(target_lines(good))
    assert "2048 tokens: 5.22 GiB | met" in lines[2]
    assert "+0.0% to +0.0%" in lines[3]
    assert "met" in lines[3]
    assert "98.0% at worst" in lines[4]
    assert "unmeasured" in lines[5]
    # 22 GB in a step take two seconds at 11 GB/s, where resident layers take one.
    bad = [measurement(streamed, 1.0, reserved=6000 * MIB, nbytes=22_000_000_000), good[1]]
    missed = list(target_lines(bad))
    assert all("**missed**" in line for line in missed[2:5])
    assert "+18.7%" in missed[3]
    assert "49.0% at worst" in missed[4]
    assert all("unmeasured" in line for line in list(target_lines([]))[2:])


def test_tables_show_medians_of_processes_and_the_highest_peak() -> None:
    streamed = [Task(side="streamed", tokens=2048, repetition=number) for number in range(3)]
    found = [measurement(task, seconds) for task, seconds in zip(streamed, (1.0, 4.0, 2.0), strict=True)]
    found[1] = measurement(streamed[1], 4.0, reserved=5 * GIB)
    found.append(measurement(Task(side="resident", tokens=2048), 1.6))
    (row,) = list(speed_lines(found))[2:3]
    assert row.startswith("| sft, r=32, 2048 tokens | 2,560 | 2,048 | 80.0% | 1 and 3 |")
    assert "| 21 of 48 |  | 5.22 | 5.34 | +2.2% | 5.00 | +2.4% | 4.90 | 0.34 |" in "\n".join(memory_lines(found))


def test_every_lever_of_a_plan_is_read_back_off_it() -> None:
    levers = Levers(
        micro_batch=2,
        resident=20,
        recompute=False,
        offload=True,
        slots=3,
        head_tile_rows=2048,
        mlp_tile_tokens=512,
        optimizer="adamw_8bit",
        staging="pinned",
    )
    assert all(getattr(levers, name) != default for name, default in Levers._field_defaults.items())
    plan = card_plan(Job(GEMMA_3_12B, TrainSettings(), 2048, "Q6_K"), levers, machine(6))
    assert levers_of(plan) == levers


def test_what_nvidia_smi_says_of_a_card() -> None:
    about = parse_about("NVIDIA GeForce RTX 4050 Laptop GPU, 575.51, 6141 MiB, [N/A], 4, 8, 1, 8\n")
    assert about is not None
    assert (about.cards, about.name, about.power_limit) == (1, "NVIDIA GeForce RTX 4050 Laptop GPU", "[N/A]")
    assert (about.link_at_most, about.link_now) == ("PCIe 4.0 x8", "PCIe 1.0 x8")
    assert parse_about("") is None
    assert parse_about("No devices were found\n") is None


@pytest.mark.slow
def test_the_small_benchmark_measures_one_of_each_kind(tmp_path: Path) -> None:
    command = [sys.executable, "benchmarks/qlora_12b.py", "--small", "--scratch", str(tmp_path)]
    finished = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[2], check=True)
    (results,) = tmp_path.glob("results-*.jsonl")
    found = [msgspec.json.decode(line, type=Measurement) for line in results.read_bytes().splitlines()]
    assert [one.task for one in found] == list(small_schedule())
    assert {one.outcome for one in found} == {"measured"}
    streamed, resident, *_ = found
    assert [step.loss for step in streamed.steps] == [step.loss for step in resident.steps]
    assert streamed.steps[0].traffic.nbytes > resident.steps[0].traffic.nbytes > 0
    assert "same number on both sides in 1 of 1" in finished.stdout
