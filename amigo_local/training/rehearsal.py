"""A rehearsal: a training's heaviest micro-batch, twice, and an evaluation, measured, and nothing changed by it."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable
from typing import NamedTuple, Protocol

import msgspec
import torch

from amigo_local.domain.memory_plan import Optimizer
from amigo_local.training.copy_engine import Traffic
from amigo_local.training.gauges import Streaming, peak_rss_bytes
from amigo_local.training.out_of_memory import is_out_of_memory
from amigo_local.training.random_state import RandomState

STEPS = 2
"""The first warms up and makes the optimizer's state; the second holds it beside everything else, and is timed."""


class Peak(msgspec.Struct, frozen=True):
    """What this process took at most, in bytes; of RAM the first alone counts."""

    tensors: int
    """In use. Less than this can't do."""
    reserved: int
    """By torch's allocator, fragments and blocks it merely keeps included."""
    context: int
    """What the driver counts beyond: CUDA's context, libraries."""

    @property
    def needed(self) -> int:
        return self.tensors + self.context

    @property
    def held(self) -> int:
        """What the driver says this process has; what a plan predicts."""
        return self.reserved + self.context


class Meter(Protocol):
    """Of the memory that the plan is about: VRAM on a card, RAM on a processor."""

    def start(self) -> None:
        """Forgets earlier peaks, and gives back what is merely kept."""

    def settle(self) -> None:
        """Returns once the device has done what it was asked for."""

    def peak(self) -> Peak:
        """Since the start."""


class ProcessMeter:
    """RSS. Its peak is the process', loading the model among it, as a plan's is."""

    def start(self) -> None: ...

    def settle(self) -> None: ...

    def peak(self) -> Peak:
        rss = peak_rss_bytes()
        return Peak(rss, rss, 0)


class CudaMeter:
    def __init__(self, device: torch.device, free_before_bytes: int | None = None) -> None:
        """free_before_bytes: of the card, as the driver told before this process used it; None: all of it."""
        self._device, self._free_before = device, free_before_bytes

    def start(self) -> None:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(self._device)

    def settle(self) -> None:
        torch.cuda.synchronize(self._device)

    def peak(self) -> Peak:
        free, total = torch.cuda.mem_get_info(self._device)
        before = total if self._free_before is None else self._free_before
        return Peak(
            tensors=torch.cuda.max_memory_allocated(self._device),
            reserved=torch.cuda.max_memory_reserved(self._device),
            context=max(0, before - free - torch.cuda.memory_reserved(self._device)),
        )


class Rehearsal(msgspec.Struct, frozen=True, kw_only=True):
    """What is rehearsed, as small pieces that belong to a trainer which is ready to go."""

    model: torch.nn.Module
    tokens: int
    """Of the heaviest micro-batch, padding included."""
    run_step: Callable[[], object]
    """Forward and backward of that micro-batch; leaves gradients."""
    evaluate: Callable[[], object] | None
    """One micro-batch of the evaluation; None: the run has none."""
    make_optimizer: Callable[[list[torch.nn.Parameter]], torch.optim.Optimizer]
    streaming: Streaming | None = None
    forget_pass: Callable[[], None] = lambda: None
    """LayerStreamer.reset: after a pass that was cut short."""


class Measured(msgspec.Struct, frozen=True, kw_only=True):
    tokens: int
    peak: Peak
    step_seconds: float = 0.0
    evaluation_seconds: float | None = None
    traffic: Traffic = Traffic()
    """Of the timed step."""
    ran_out: str = ""
    """What torch said when memory ran out; the seconds are void then."""


def scratch_optimizer(name: Optimizer, parameters: list[torch.nn.Parameter]) -> torch.optim.Optimizer:
    """Of the class that the run will use, with states of its own.

    Paged states become plain ones: bitsandbytes never frees managed memory (functional.get_paged), and torch's
    peak doesn't see it.
    """
    if name == "adamw_torch":
        return torch.optim.AdamW(parameters)
    import bitsandbytes

    optimizer: torch.optim.Optimizer = bitsandbytes.optim.AdamW8bit(parameters)
    return optimizer


def rehearse(rehearsal: Rehearsal, meter: Meter, clock: Callable[[], float] = time.monotonic) -> Measured:
    """Running out of memory is a result. Whatever else is raised comes out, with everything put back as well."""
    before = _Before(rehearsal.model)
    meter.start()
    timed, ran_out = None, ""
    try:
        timed = _run(rehearsal, before.trainable, meter, clock)
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        ran_out = str(error).splitlines()[0]
    finally:
        # After the except clause: the traceback holds frames, and frames hold the graph.
        peak = meter.peak()
        before.restore()
        if timed is None:
            rehearsal.forget_pass()
        gc.collect()
        meter.start()  # the training's own peak is to be seen
    timed = timed or _Timed(0.0, None, Traffic())
    return Measured(tokens=rehearsal.tokens, peak=peak, ran_out=ran_out, **timed._asdict())


class _Timed(NamedTuple):
    step_seconds: float
    evaluation_seconds: float | None
    traffic: Traffic


def _run(rehearsal: Rehearsal, trainable: list[torch.nn.Parameter], meter: Meter, clock: Callable[[], float]) -> _Timed:
    optimizer = rehearsal.make_optimizer(trainable)
    rehearsal.model.train()
    seconds, traffic = 0.0, Traffic()
    for _ in range(STEPS):
        started, moved = clock(), _traffic(rehearsal)
        rehearsal.run_step()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        meter.settle()
        seconds, traffic = clock() - started, _traffic(rehearsal).since(moved)
    evaluation = None
    if rehearsal.evaluate is not None:
        rehearsal.model.eval()
        started = clock()
        with torch.no_grad():
            rehearsal.evaluate()
        meter.settle()
        evaluation = clock() - started
    return _Timed(seconds, evaluation, traffic)


def _traffic(rehearsal: Rehearsal) -> Traffic:
    return rehearsal.streaming.traffic() if rehearsal.streaming is not None else Traffic()


class _Before:
    """Everything that a rehearsal changes, as it was: trainable weights, gradients, modes, random generators."""

    def __init__(self, model: torch.nn.Module) -> None:
        self._random = RandomState()
        self.trainable = [p for p in model.parameters() if p.requires_grad]
        self._weights = [p.detach().to("cpu", copy=True) for p in self.trainable]  # not in the memory that is measured
        self._gradients = [p.grad for p in self.trainable]
        self._modes = [(module, module.training) for module in model.modules()]
        for parameter in self.trainable:
            parameter.grad = None

    def restore(self) -> None:
        with torch.no_grad():
            for parameter, weights, gradient in zip(self.trainable, self._weights, self._gradients, strict=True):
                parameter.copy_(weights)
                parameter.grad = gradient
        for module, training in self._modes:
            module.training = training
        self._random.restore()
