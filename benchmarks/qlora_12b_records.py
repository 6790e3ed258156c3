"""What one process measures and what comes out of it, kept as JSON lines so that a cut run goes on."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Literal

import msgspec

from amigo_local.domain.memory_plan import MemoryPlan, Staging
from amigo_local.training.copy_engine import Traffic
from amigo_local.training.rehearsal import Peak

Side = Literal["streamed", "resident", "peer", "peer uncapped"]
Method = Literal["sft", "dpo"]
Outcome = Literal["measured", "out of memory", "refused", "failed"]

TARGET_BYTES_PER_SECOND = 11e9
"""PCIe 4.0 x8, a laptop RTX 4050's."""


class Task(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One measurement, made by one process."""

    side: Side
    """streamed: as planned for the capped card. resident: as planned for the whole card. peer: TRL and bitsandbytes by
    themselves, under the same cap or without one."""
    method: Method = "sft"
    tokens: int
    """Of a micro-batch."""
    rank: int = 32
    samples: int = 2
    """That a micro-batch is packed of; a single one needs no attention mask. DPO: always a pair."""
    staging: Staging = "ring"
    probe: bool = False
    """With the product's probe in front, which corrects the plan."""
    repetition: int = 0

    @property
    def micro_batches(self) -> int:
        """Of a step, so that a step has some 4096 tokens."""
        return max(2, min(4, 4096 // self.tokens))

    @property
    def tokens_per_step(self) -> int:
        return self.micro_batches * self.tokens

    def __str__(self) -> str:
        parts = [self.side, self.method, f"r={self.rank}", f"{self.tokens} tokens"]
        parts += ["one sample"] * (self.samples == 1 and self.method == "sft" and not self.side.startswith("peer"))
        parts += [self.staging] * (self.staging != "ring") + ["with probe"] * self.probe
        return ", ".join(parts) + (f" (repetition {self.repetition + 1})" if self.repetition else "")


class Setup(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What all tasks of a run share."""

    scratch: str
    shape: str | None
    """Named shape; None: a small model."""
    vram: str
    """Of the card that is stood in for: `6GiB`."""
    ram: str
    card: str
    """Its name; "processor" where there is none."""
    steps: int
    """To time in each process, after one that warms up."""
    seconds: float
    """After which fewer will do, but two."""


class Job(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a process is asked for."""

    setup: Setup
    task: Task


class Step(msgspec.Struct, frozen=True, kw_only=True):
    """One optimizer step, start to end; transformers waits for the card when it logs the loss."""

    seconds: float
    loss: float
    traffic: Traffic = Traffic()

    @property
    def scaled_seconds(self) -> float:
        """max(computing, copying at TARGET_BYTES_PER_SECOND), where computing is what wasn't waited for copies."""
        computing = self.seconds - self.traffic.seconds_waited
        return max(computing, self.traffic.nbytes / TARGET_BYTES_PER_SECOND)


class Memory(msgspec.Struct, frozen=True, kw_only=True):
    """After the last timed step; peaks are since the process began."""

    peak: Peak
    """Of the allocator, and what the driver counts beyond. On a processor RSS."""
    driver_difference_bytes: int | None
    """What nvidia-smi says is free, less than before this process."""
    driver_process_bytes: int | None
    """What nvidia-smi says that this process has; None where it doesn't tell."""
    rss_bytes: int
    """Peak, mapped pages of the store among it."""


class Measurement(msgspec.Struct, frozen=True, kw_only=True):
    task: Task
    card: str
    outcome: Outcome
    message: str = ""
    phase: str = ""
    """In which memory ran out."""
    frames: tuple[str, ...] = ()
    """Where it ran out, the innermost last."""
    plan: MemoryPlan | None = None
    """That was trained with. None: the peer has none."""
    cap_bytes: int | None = None
    """Of the allocator; None: the whole card."""
    steps: tuple[Step, ...] = ()
    memory: Memory | None = None
    kernels: tuple[str, ...] = ()
    """torch's attention operators that ran."""
    notes: tuple[str, ...] = ()
    link: str = ""
    """To the card, read when it had just been used."""
    libraries: str = ""
    process_seconds: float = 0.0

    @property
    def tokens_per_second(self) -> float:
        return self.task.tokens_per_step / statistics.median(step.seconds for step in self.steps)

    @property
    def scaled_tokens_per_second(self) -> float:
        return self.task.tokens_per_step / statistics.median(step.scaled_seconds for step in self.steps)


class Results:
    """One line a measurement. A line that was cut is dropped, one of another version of this file not counted."""

    def __init__(self, path: Path, card: str) -> None:
        self._path, self._card = path, card
        self.all: list[Measurement] = []
        """Of this card."""
        content = path.read_bytes() if path.is_file() else b""
        for line in content.splitlines(keepends=True):
            with suppress(msgspec.MsgspecError):
                found = msgspec.json.decode(line, type=Measurement)
                self.all += [found] * (found.card == card)
        whole = content.rfind(b"\n") + 1
        if whole < len(content):
            path.write_bytes(content[:whole])

    def add(self, measurement: Measurement) -> None:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with self._path.open("ab") as file:
            file.write(msgspec.json.encode(measurement) + b"\n")
        self.all.append(measurement)

    def open_tasks(self, tasks: Iterable[Task]) -> list[Task]:
        """Those without a result; one that failed for no known reason is tried again."""
        done = {found.task for found in self.all if found.outcome != "failed"}
        return [task for task in tasks if task not in done]

    def expected_seconds(self, task: Task) -> float:
        """The longest that a process of the same side took, of as many tokens where there was one."""
        took = [(found.task.tokens == task.tokens, found.process_seconds) for found in self.all]
        same = [seconds for tokens, seconds in took if tokens]
        return max(same or [seconds for _, seconds in took], default=0.0)


def measured(
    results: Sequence[Measurement], side: Side, *, method: Method, rank: int, tokens: int
) -> list[Measurement]:
    """All repetitions of the plain tasks: packed, through the ring, without a probe."""
    wanted = Task(side=side, method=method, rank=rank, tokens=tokens)
    return [
        found
        for found in results
        if found.outcome == "measured" and msgspec.structs.replace(found.task, repetition=0) == wanted
    ]
