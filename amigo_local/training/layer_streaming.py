"""Decoder layers whose NF4 weights take turns in a few fixed device buffers, forward and again backward."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from itertools import accumulate
from typing import Any

import torch
from torch import nn

from amigo_local.training.copy_engine import CopyEngine, Ticket, Traffic
from amigo_local.training.layer_pack import LayerPack, bind, linears_4bit
from amigo_local.training.nf4_index import aligned


def spread_evenly(layers: int, streamed: int) -> frozenset[int]:
    """The layers to keep resident, so that each of the `streamed` ones hides behind as much computing as any other."""
    if not 0 <= streamed <= layers:
        raise ValueError(f"{streamed} streamed layers of {layers}")
    return frozenset(range(layers)) - {(2 * turn + 1) * layers // (2 * streamed) for turn in range(streamed)}


class _Slot:
    """A device buffer that some of the streamed layers take turns in."""

    def __init__(self, buffer: torch.Tensor) -> None:
        self.buffer = buffer
        self.turn: int | None = None
        """Whose weights are here, or on their way here."""
        self.waited = True
        self.ticket: Ticket = None


class LayerStreamer:
    """Binds layers to device buffers, resident ones for good, streamed ones to slots that it fills in time.

    layers: the model's decoder layers, in order, before or after PEFT has wrapped their linears. packs: theirs, on
    the host; they stay in use. resident: indices of the layers that get a buffer of their own. engine: stays open at
    `close`, as several may share it.

    A layer's slot never changes (see `bind`), so autograd may keep views of it: a backward hook sees to it that the
    slot holds the layer again when they are read. Hooks sit on each Linear4bit: transformers 5 checkpoints
    `layer.forward`, so hooks on the layer itself don't run when it is recomputed (GradientCheckpointingLayer in
    transformers/modeling_layers.py).
    """

    def __init__(
        self,
        layers: Sequence[nn.Module],
        packs: Sequence[LayerPack],
        device: torch.device,
        *,
        engine: CopyEngine,
        resident: Collection[int] = (),
        slots: int = 2,
        prefetch: bool = True,
    ) -> None:
        if len(layers) != len(packs) or not set(resident) <= set(range(len(layers))) or slots < 1:
            raise ValueError(f"{len(layers)} layers, {len(packs)} packs, resident {sorted(resident)}, {slots} slots")
        self._layers, self._packs, self._engine, self._prefetch = list(layers), list(packs), engine, prefetch
        self.resident = tuple(sorted(resident))
        self.streamed = tuple(index for index in range(len(layers)) if index not in set(resident))
        self._turns = {index: turn for turn, index in enumerate(self.streamed)}
        self._now: int | None = None
        self._bound: list[int] = []
        self._handles: list[Any] = []
        self._closed = False

        own = _buffers([packs[index].nbytes for index in self.resident], device)
        slot_bytes = max((packs[index].nbytes for index in self.streamed), default=0)
        shared = _buffers([slot_bytes] * min(slots, len(self.streamed)), device)
        self._slots = [_Slot(buffer) for buffer in shared]
        self.device_bytes = sum(buffer.numel() for buffer in (*own, *shared))
        try:
            self._attach(own)
        except BaseException:
            self.close()
            raise

    def _attach(self, own: list[torch.Tensor]) -> None:
        for index, buffer in zip(self.resident, own, strict=True):
            self._bind(index, buffer)
            self._engine.wait(self._engine.copy(buffer, self._packs[index].flat, self._engine.mark()))
        for index in self.streamed:
            self._bind(index, self._slot(self._turns[index]).buffer)
            for _, linear in linears_4bit(self._layers[index]):
                before_forward, after_forward = self._hooks(index)
                self._handles.append(linear.register_forward_pre_hook(before_forward))
                self._handles.append(linear.register_forward_hook(after_forward))

    def _bind(self, index: int, buffer: torch.Tensor) -> None:
        bind(self._layers[index], self._packs[index], buffer)
        self._bound.append(index)

    def _hooks(self, index: int) -> tuple[Callable[..., None], Callable[..., None]]:
        """Plain functions: PEFT deep-copies the linear when it initialises DoRA, and deepcopy keeps functions as is."""

        def before_forward(linear: nn.Module, arguments: Any) -> None:
            self.require(index, cyclic=not linear.training)

        def before_backward(gradient: torch.Tensor) -> None:
            self.require(index)

        def after_forward(linear: nn.Module, arguments: Any, output: torch.Tensor) -> None:
            if output.requires_grad:  # its hook runs right before MatMul4Bit.backward reads the slot
                output.register_hook(before_backward)

        return before_forward, after_forward

    def require(self, index: int, *, cyclic: bool = False) -> None:
        """What is computed from now on, until another streamed layer is required, sees layer `index`'s weights.

        Starts copying the ones needed next: upwards, and within a backward pass downwards. At either end the slots
        hold what the way back begins with, so nothing more is copied there, unless passes are `cyclic`: in
        evaluation and generation one forward pass follows another.
        """
        if self._closed:
            raise RuntimeError("a backward pass over a forward pass from before its layer streamer was closed")
        if self._now == index:
            return  # all but the first of a layer's linears
        if (turn := self._turns.get(index)) is None:
            return  # resident
        slot = self._slot(turn)
        if slot.turn != turn:
            self._load(turn)
        if not slot.waited:
            self._wait(slot)
        self._now = index
        if self._prefetch:
            down = torch._C._current_graph_task_id() != -1  # as torch.utils.checkpoint tells a backward pass
            self._load_ahead(turn, -1 if down else 1, cyclic and not down)

    def _load_ahead(self, turn: int, step: int, cyclic: bool) -> None:
        for distance in range(1, len(self._slots)):
            ahead = turn + step * distance
            if cyclic:
                ahead %= len(self.streamed)
            elif not 0 <= ahead < len(self.streamed):
                return
            slot = self._slot(ahead)
            if slot.turn != ahead and slot is not self._slot(turn):
                self._load(ahead)

    def _load(self, turn: int) -> None:
        """Everything that reads the slot's former layer has been started by now, so the copy comes after `mark()`."""
        slot, flat = self._slot(turn), self._packs[self.streamed[turn]].flat
        slot.turn = None
        slot.ticket = self._engine.copy(slot.buffer[: flat.numel()], flat, self._engine.mark())
        slot.turn, slot.waited = turn, False

    def _wait(self, slot: _Slot) -> None:
        turn, slot.turn = slot.turn, None
        self._engine.wait(slot.ticket)
        slot.turn, slot.waited, slot.ticket = turn, True, None

    def _slot(self, turn: int) -> _Slot:
        return self._slots[turn % len(self._slots)]

    @contextmanager
    def loaded(self, index: int) -> Iterator[nn.Module]:
        """For code that reads a layer's weights outside of a forward pass, such as PEFT's DoRA and its merging."""
        self.require(index)
        yield self._layers[index]

    def traffic(self) -> Traffic:
        """The engine's, with whatever else is copied through it."""
        return self._engine.traffic()

    def reset(self) -> None:
        """Forgets what the slots hold, so that all of it is copied again.

        For after an exception in the middle of a pass. The streamer's own books are right even then; this is for
        doubts about the device's memory.
        """
        self._now = None
        for slot in self._slots:
            slot.turn = None

    def close(self) -> None:
        """Takes the hooks off, binds the layers to their packs on the host and lets go of the device's memory.

        Whoever holds a graph of an earlier forward pass gets a RuntimeError in its backward pass.
        """
        if self._closed:
            return
        self._closed = True
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        for index in self._bound:
            bind(self._layers[index], self._packs[index], self._packs[index].flat)
        # Freed memory goes to whatever is computed next, so that has to come after copies still on their way.
        slots, self._slots = self._slots, []
        for slot in slots:
            if not slot.waited:
                self._engine.wait(slot.ticket)


def _buffers(sizes: Sequence[int], device: torch.device) -> list[torch.Tensor]:
    """Slices of one allocation: the caching allocator would round each of them up to 2 MiB."""
    ends = list(accumulate(map(aligned, sizes), initial=0))
    whole = torch.empty(ends[-1], dtype=torch.uint8, device=device)
    return [whole[start : start + size] for start, size in zip(ends, sizes, strict=False)]


def initialise_magnitudes(streamer: LayerStreamer, layers: Sequence[nn.Module]) -> None:
    """Gives DoRA the magnitudes of the layers' own weights, where PEFT wrapped the layers of an attached streamer.

    PEFT computes them when it wraps (DoraLinearLayer.update_layer in peft/tuners/lora/dora.py), from whatever the
    slots held. Layers that were wrapped before have the right ones already.
    """
    for index, layer in enumerate(layers):
        with streamer.loaded(index):
            for module in layer.modules():
                for name, dora in getattr(module, "lora_magnitude_vector", {}).items():
                    _initialise_magnitude(module, name, dora)


def _initialise_magnitude(lora: Any, name: str, dora: Any) -> None:
    magnitude, base = dora.weight, lora.get_base_layer()
    # As PEFT has it at that moment: the adapter is cast to f32 only after the magnitudes are there.
    dtype = base.weight.quant_state.dtype
    a, b = lora.lora_A[name].weight.to(dtype), lora.lora_B[name].weight.to(dtype)
    dora.update_layer(base_layer=base, lora_A=a, lora_B=b, scaling=lora.scaling[name])
    with torch.no_grad():
        magnitude.copy_(dora.weight)
    dora.weight = magnitude  # an optimizer may know it
