"""One measurement of the product's own training, as `train` runs it: store, plan, base and trainer."""

from __future__ import annotations

import json
import os
import tempfile
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path
from random import Random
from typing import Any

import msgspec
import torch

from amigo_local.domain.events import AnyEvent, MetricLogged, Note, Table
from amigo_local.domain.machine import Machine
from amigo_local.domain.memory_plan import MemoryPlan
from amigo_local.domain.recipe import LoraSettings, MemorySettings, TrainSettings
from amigo_local.domain.settings import MachineBudget
from amigo_local.domain.shape import ModelShape
from amigo_local.domain.units import parse_size
from amigo_local.engine.machine import measure_machine
from amigo_local.stages._gpu_handoff import GpuMemory
from amigo_local.stages._shapes import checkpoint_shape
from amigo_local.training import streamed_base
from amigo_local.training.copy_engine import Traffic
from amigo_local.training.fit import USABLE_SHARE
from amigo_local.training.frozen_base import FrozenBase, LoadedBase, Streamer
from amigo_local.training.gauges import peak_rss_bytes
from amigo_local.training.memory_formula import CONTEXT_BYTES, Calibration, layer_bytes
from amigo_local.training.memory_plan import choose_plan
from amigo_local.training.probe import Probing
from amigo_local.training.rehearsal import CudaMeter, ProcessMeter
from benchmarks.qlora_12b_card import about_card, card_memory
from benchmarks.qlora_12b_records import Measurement, Memory, Setup, Step, Task
from benchmarks.qlora_12b_stand_in import load_on_processor
from benchmarks.qlora_12b_store import TABLE_TYPE

WARM_UP_STEPS = 1
PASSES = 50
"""Over the rows, at most: more steps than are ever timed."""
NEVER = 1 << 30


class Enough(Exception):
    """Raised out of a training that has shown what was wanted."""


def measure(task: Task, setup: Setup, store: Path) -> Measurement:
    """Raises what training raises; running out of memory among it."""
    from amigo_local.training.dpo import train_dpo
    from amigo_local.training.sft import train_sft
    from amigo_local.training.training_run import TrainingRun

    before = card_memory() if torch.cuda.is_available() else None
    settings, shape = settings_of(task, setup), checkpoint_shape(store)
    machine = machine_of(task, setup)

    def plan_with(calibration: Calibration) -> MemoryPlan:
        return plan_of(task, settings, shape, machine, calibration)

    plan = plan_with(Calibration())
    cap = cap_card(setup) if task.side == "streamed" else None
    watch = Watch(task, setup, before)
    base = watch.watched(base_of(store))
    probing = Probing(plan_with, layer_bytes(shape), before.free_bytes if before else None) if task.probe else None
    with tempfile.TemporaryDirectory(dir=setup.scratch) as folder:
        rows = write_rows(task, shape.vocabulary, Path(folder) / "rows")
        run = TrainingRun(
            settings=settings,
            plan=plan,
            base=base,
            dataset_dir=rows,
            out_dir=Path(folder) / "out",
            emit=watch.see,
            probing=probing,
        )
        with suppress(Enough):
            train_dpo(run) if task.method == "dpo" else train_sft(run)
    return Measurement(
        task=task,
        card=setup.card,
        outcome="measured",
        plan=watch.plan,
        cap_bytes=cap,
        steps=tuple(watch.steps),
        memory=watch.memory,
        kernels=watch.kernels,
        notes=tuple(watch.notes),
        link=watch.link,
        libraries=libraries(),
    )


# -- What is trained, and by which plan


def settings_of(task: Task, setup: Setup) -> TrainSettings:
    per_micro_batch = 1 if task.method == "dpo" else task.samples
    fixed = MemorySettings(staging=task.staging)
    if setup.shape is None:  # which would fit as a whole
        fixed = msgspec.structs.replace(fixed, resident_layers=1 if task.side == "streamed" else None)
    return TrainSettings(
        method=task.method,
        epochs=PASSES,
        effective_batch=per_micro_batch * task.micro_batches,
        # Of the full length, which is that of all samples of a micro-batch together, or of one side of a pair.
        micro_batch=2 if task.method == "dpo" else 1,
        scheduler="constant",
        checkpoint_every_steps=NEVER,
        lora=LoraSettings(rank=task.rank, alpha=2 * task.rank),
        memory=fixed,
    )


def machine_of(task: Task, setup: Setup) -> Machine:
    """The card that is stood in for, or the one that is there. Without one: an endless one."""
    whole = None if torch.cuda.is_available() else "1024GiB"
    vram = setup.vram if task.side == "streamed" else whole
    return measure_machine(Path(setup.scratch), MachineBudget(vram=vram, ram=setup.ram))


def plan_of(
    task: Task, settings: TrainSettings, shape: ModelShape, machine: Machine, calibration: Calibration
) -> MemoryPlan:
    """The planner's own. Where there is no card it is carried out on the processor, all but its optimizer."""
    length = task.tokens // 2 if task.method == "dpo" else task.tokens
    plan = choose_plan(shape, settings, length, machine, table_type=TABLE_TYPE, calibration=calibration)
    if torch.cuda.is_available():
        return plan
    return msgspec.structs.replace(plan, device="cpu", optimizer="adamw_torch")


def write_rows(task: Task, vocabulary: int, folder: Path) -> Path:
    """Rows as `prepare` writes them, of random tokens, as many as a step takes; half of them are completions."""
    draw = Random(0)

    def tokens(count: int) -> list[int]:
        return [draw.randrange(vocabulary) for _ in range(count)]

    def row() -> dict[str, Any]:
        if task.method == "dpo":
            part = task.tokens // 4
            return {"prompt_ids": tokens(part), "chosen_ids": tokens(part), "rejected_ids": tokens(part)}
        length = task.tokens // task.samples
        return {"input_ids": tokens(length), "completion_start": length // 2}

    count = task.micro_batches * (1 if task.method == "dpo" else task.samples)
    folder.mkdir()
    (folder / "train.jsonl").write_text("".join(json.dumps(row()) + "\n" for _ in range(count)))
    return folder


# -- The card, or what stands in for it


def cap_card(setup: Setup) -> int | None:
    """Holds torch's allocator to what the plan of the smaller card leaves it, in bytes; None without a card.

    set_per_process_memory_fraction counts what the allocator has reserved, so CUDA's context comes off first: as
    large as the plan takes it to be on the smaller card.
    """
    if not torch.cuda.is_available():
        return None
    cap = int(USABLE_SHARE * parse_size(setup.vram)) - CONTEXT_BYTES
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction(min(1.0, cap / total), 0)
    return min(cap, total)


def base_of(store: Path) -> FrozenBase:
    """The product's own. Without a card its layers and its head's tiles are copied all the same, host to host."""
    base = streamed_base.base_from_store(store, name="random")
    if torch.cuda.is_available():
        return base
    return msgspec.structs.replace(base, load=lambda plan: load_on_processor(store, plan))


# -- What comes out


class Watch:
    """Looks on as a training runs, by its events, and ends it."""

    def __init__(self, task: Task, setup: Setup, before: GpuMemory | None) -> None:
        self._task, self._setup, self._before = task, setup, before
        self._streamer: Streamer | None = None
        self._moved = Traffic()
        self._logged = 0
        self._profiler: Any = None
        self.steps: list[Step] = []
        self.plan: MemoryPlan | None = None
        self.memory: Memory | None = None
        self.kernels: tuple[str, ...] = ()
        self.link = ""
        self.notes: list[str] = []

    def watched(self, base: FrozenBase) -> FrozenBase:
        """The same base, which tells by which plan it was loaded, and whose copies are counted."""

        def load(plan: MemoryPlan) -> LoadedBase:
            loaded = base.load(plan)
            self.plan, self._streamer = plan, loaded.streamer
            return loaded

        return msgspec.structs.replace(base, load=load)

    def see(self, event: AnyEvent) -> None:
        """As `emit`. Raises Enough after the timed steps and one more, whose operators are listed."""
        if isinstance(event, Note):
            self.notes.append(event.text)
        if isinstance(event, Table):  # the probe's
            self.notes += [" | ".join(str(cell) for cell in row) for row in event.rows]
        if not isinstance(event, MetricLogged) or "loss" not in event.values:
            return
        if self._profiler is not None:
            self._profiler.stop()
            self.kernels = attention_kernels(self._profiler)
            raise Enough
        now = self._streamer.traffic() if self._streamer is not None else Traffic()
        moved, self._moved = now.since(self._moved), now
        self._logged += 1
        if self._logged <= WARM_UP_STEPS:
            return
        values = event.values
        self.steps.append(Step(seconds=values["seconds_per_step"], loss=values["loss"], traffic=moved))
        if self._has_enough():
            self.memory, self.link = memory_now(self._before), link_now()
            self._profiler = start_profiler()

    def _has_enough(self) -> bool:
        timed = sum(step.seconds for step in self.steps)
        return len(self.steps) >= self._setup.steps or (len(self.steps) > 1 and timed > self._setup.seconds)


def memory_now(before: GpuMemory | None) -> Memory:
    """before: what nvidia-smi told before this process used the card."""
    if not torch.cuda.is_available():
        return Memory(
            peak=ProcessMeter().peak(),
            driver_difference_bytes=None,
            driver_process_bytes=None,
            rss_bytes=peak_rss_bytes(),
        )
    now = card_memory()
    mine = [process.used_bytes for process in now.processes if process.pid == os.getpid()] if now else []
    return Memory(
        peak=CudaMeter(torch.device("cuda", 0), before.free_bytes if before else None).peak(),
        driver_difference_bytes=before.free_bytes - now.free_bytes if before and now else None,
        driver_process_bytes=mine[0] if mine else None,
        rss_bytes=peak_rss_bytes(),
    )


def link_now() -> str:
    about = about_card() if torch.cuda.is_available() else None
    return about.link_now if about else ""


def start_profiler() -> Any:
    from torch.profiler import ProfilerActivity, profile

    profiler = profile(activities=[ProfilerActivity.CPU])  # operators' names say which kernel; no driver rights needed
    profiler.start()
    return profiler


def attention_kernels(profiler: Any) -> tuple[str, ...]:
    """`flash_attention`, `efficient_attention`, `cudnn_attention`, or `attention_math`; backward passes too."""
    prefix = "aten::_scaled_dot_product_"
    names = {event.key.removeprefix(prefix) for event in profiler.key_averages() if event.key.startswith(prefix)}
    return tuple(sorted(names))


def libraries() -> str:
    names = ("torch", "bitsandbytes", "transformers", "peft", "trl", "accelerate")
    cuda = torch.version.cuda
    return ", ".join(f"{name} {version(name)}" for name in names) + (f", CUDA {cuda}" if cuda else "")
