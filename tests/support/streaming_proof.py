"""Trains the same tiny model resident and streamed, and counts which losses, gradients and weights are equal."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from random import Random
from typing import Any, Literal, NamedTuple

import torch

from amigo_local.training.copy_engine import CopyEngine, SyncEngine, ThreadedEngine
from amigo_local.training.layer_pack import LayerPack, bind, pack_layer
from amigo_local.training.layer_streaming import LayerStreamer
from amigo_local.training.staging_ring import DeviceEngine, StagingRing
from tests.support.quantized_model import decoder_layers, load_nf4, lora, write_tiny_gemma
from tests.support.simulated_device import SimulatedDevice

CPU = torch.device("cpu")
Record = dict[str, torch.Tensor]
Recompute = Literal["none", "reentrant", "non-reentrant", "every second layer", "offloaded"]
_CHECKPOINTING: dict[str, dict[str, Any]] = {
    "reentrant": {"activation_checkpointing_kwargs": {"use_reentrant": True}},
    "non-reentrant": {"activation_checkpointing_kwargs": {"use_reentrant": False}},
    "every second layer": {"every_n_layers": 2},
    "offloaded": {},
}


class Comparison(NamedTuple):
    equal: int
    total: int

    def __add__(self, other: Comparison) -> Comparison:  # type: ignore[override]
        return Comparison(self.equal + other.equal, self.total + other.total)

    def __str__(self) -> str:
        return f"{self.equal} of {self.total}"

    @property
    def identical(self) -> bool:
        return self.total > 0 and self.equal == self.total


def compare(expected: Record, found: Record) -> Comparison:
    """Bit by bit: a NaN equals nothing."""
    assert expected.keys() == found.keys()
    return Comparison(sum(torch.equal(expected[name], found[name]) for name in expected), len(expected))


class OneCopyLate(ThreadedEngine):
    """Waiting does nothing but set off what was asked for before: weights arrive one wait after they are needed."""

    def __init__(self) -> None:
        super().__init__(late=1.0)
        self._before: Any = None

    def wait(self, ticket: Any) -> None:
        if self._before is not None:
            super().wait(self._before)
        self._before = ticket


class NeverWaits(ThreadedEngine):
    """Waiting does nothing, and nothing comes by itself."""

    def __init__(self) -> None:
        super().__init__(late=1.0)

    def wait(self, ticket: Any) -> None:
        return None


def ring_engine(seed: int | None = 0) -> DeviceEngine:
    """Chunks much smaller than a layer's 22,016 bytes, on a card that is as late as it may be, or sometimes early."""
    device = SimulatedDevice(None if seed is None else Random(seed))
    return DeviceEngine(device, StagingRing(device, chunk_bytes=4096, chunks=2))


ENGINES: dict[str, Callable[[], CopyEngine]] = {
    "at once": SyncEngine,
    "late": lambda: ThreadedEngine(late=1.0),
    "now and then late": lambda: ThreadedEngine(late=0.3, random=Random(0)),
    "ring": ring_engine,
    "ring, late": lambda: ring_engine(None),
}


class HooksOnLayers(LayerStreamer):
    """Negative control: waits where accelerate and others do, at the decoder layer."""

    def _attach(self, own: list[torch.Tensor]) -> None:
        super()._attach(own)
        for handle in self._handles:
            handle.remove()
        self._handles = [
            self._layers[index].register_forward_pre_hook(lambda layer, arguments, index=index: self.require(index))
            for index in self.streamed
        ]


class SlotsInTurn(LayerStreamer):
    """Negative control: a layer gets whichever slot comes next and is bound to it anew at every load."""

    def __init__(self, *arguments: Any, **others: Any) -> None:
        self._given: dict[int, Any] = {}
        self._next = 0
        super().__init__(*arguments, **others)

    def _slot(self, turn: int) -> Any:
        return self._given.get(turn) or super()._slot(turn)

    def _load(self, turn: int) -> None:
        in_use = None if self._now is None else self._given.get(self._turns[self._now])
        slot = in_use
        while slot is in_use:
            slot, self._next = self._slots[self._next], (self._next + 1) % len(self._slots)
        self._given = {other: given for other, given in self._given.items() if given is not slot} | {turn: slot}
        bind(self._layers[self.streamed[turn]], self._packs[self.streamed[turn]], slot.buffer)
        super()._load(turn)


def packs_of(checkpoint: Path) -> list[LayerPack]:
    return [pack_layer(layer) for layer in decoder_layers(load_nf4(checkpoint))]


class TinyGemma:
    """A checkpoint, its layers as they are streamed, and what the plain model computes, as transformers, bitsandbytes
    and PEFT make it, without any of our code."""

    def __init__(self, folder: Path) -> None:
        self.base = write_tiny_gemma(folder)
        self.packs = packs_of(self.base)

    @cached_property
    def resident(self) -> Record:
        """Two steps."""
        return train_steps(adapted(self.base, "none"))

    @cached_property
    def resident_step(self) -> Record:
        """One step, for tests of something else than training on and on."""
        return train_steps(adapted(self.base, "none"), steps=1)


@contextmanager
def streaming(
    model: Any,
    packs: Sequence[LayerPack],
    engine: CopyEngine,
    *,
    resident: Sequence[int] = (),
    slots: int = 2,
    prefetch: bool = True,
    kind: type[LayerStreamer] = LayerStreamer,
) -> Iterator[LayerStreamer]:
    """Attached within, undone after; the engine is closed."""
    streamer = kind(decoder_layers(model), packs, CPU, engine=engine, resident=resident, slots=slots, prefetch=prefetch)
    try:
        yield streamer
    finally:
        streamer.close()
        engine.close()


def adapted(
    checkpoint: Path, recompute: Recompute, *, dora: bool = False, wrap: Callable[..., Any] | None = None
) -> Any:
    """The model with LoRA weights that all matter, the same ones every time, in training mode."""
    from peft import get_peft_model

    model = (wrap or get_peft_model)(load_nf4(checkpoint), lora(dora=dora))
    stir(model)
    model.train()
    if recompute != "none":
        model.enable_input_require_grads()
        model.get_base_model().activation_checkpointing_enable(**_CHECKPOINTING[recompute])
    if recompute == "offloaded":
        _offload_checkpoints(model)
    return model


def _offload_checkpoints(model: Any) -> None:
    """As transformers' offload=True does it, which needs pinned memory and with it a card: saved tensors are copies."""
    for layer in decoder_layers(model):
        recomputed = layer._gradient_checkpointing_func

        def offloaded(*arguments: Any, recomputed: Any = recomputed) -> Any:
            with torch.autograd.graph.saved_tensors_hooks(torch.clone, torch.clone):
                return recomputed(*arguments)

        layer._gradient_checkpointing_func = offloaded


def stir(model: Any) -> None:
    """LoRA's B starts at zero, and with it the gradient of A: random numbers instead."""
    generator = torch.Generator().manual_seed(1)
    for name, parameter in model.named_parameters():
        if "lora_A" in name or "lora_B" in name:
            parameter.data = torch.randn(parameter.shape, generator=generator) * 0.05


def train_steps(model: Any, *, steps: int = 2, first: int = 0) -> Record:
    """Two micro-batches a step, dropout on; after each step an evaluation and a pass with the adapter off."""
    torch.manual_seed(first)
    trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    optimizer = torch.optim.AdamW(trained.values(), lr=1e-2)
    record: Record = {}
    for step in range(first, first + steps):
        for micro in range(2):
            loss = model(**batch(10 * step + micro), use_cache=False).loss
            loss.backward()
            record[f"step {step} loss {micro}"] = loss.detach()
        for name, parameter in trained.items():
            record[f"step {step} gradient {name}"] = parameter.grad.clone()
        optimizer.step()
        optimizer.zero_grad()
        with torch.no_grad(), model.disable_adapter():
            record[f"step {step} reference"] = model(**batch(99), use_cache=False).loss
        model.eval()
        with torch.no_grad():
            record[f"step {step} evaluation"] = model(**batch(100), use_cache=False).loss
            record[f"step {step} evaluation again"] = model(**batch(101), use_cache=False).loss
        model.train()
    return record | {f"adapter {name}": parameter.detach().clone() for name, parameter in trained.items()}


def batch(seed: int) -> dict[str, torch.Tensor]:
    """Two rows of 24 tokens: longer than the sliding window of 16."""
    ids = torch.randint(0, 512, (2, 24), generator=torch.Generator().manual_seed(seed))
    return {"input_ids": ids, "labels": ids}
