"""When a streamed layer's weights are copied: ahead of their use, after the slot's last, and no more than needed."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from amigo_local.training.copy_engine import SyncEngine
from amigo_local.training.layer_pack import bind, linears_4bit
from tests.support.quantized_model import LAYERS, decoder_layers
from tests.support.streaming_proof import (
    TinyGemma,
    adapted,
    batch,
    compare,
    streaming,
    train_steps,
)


@pytest.fixture(scope="module")
def gemma(tmp_path_factory: pytest.TempPathFactory) -> TinyGemma:
    return TinyGemma(tmp_path_factory.mktemp("streaming") / "gemma")


class Told(SyncEngine):
    """Writes down what is asked of it, `copy n` and `wait n`, n being which copy it is; and `compute` in between."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.told: list[tuple[str, int]] = []
        self._copies = itertools.count()
        for layer in decoder_layers(model):
            for _, linear in linears_4bit(layer):
                linear.register_forward_hook(lambda *_: self.told.append(("compute", 0)))

    def copy(self, target: torch.Tensor, source: torch.Tensor, after: Any) -> Any:
        super().copy(target, source, after)
        number = next(self._copies)
        self.told.append(("copy", number))
        return number

    def wait(self, ticket: Any) -> None:
        self.told.append(("wait", ticket))

    def on_demand(self) -> int:
        """Copies that were asked for only when they were needed: nothing is computed before they are waited for."""
        pairs = itertools.pairwise(self.told)
        return sum(first[0] == "copy" and then == ("wait", first[1]) for first, then in pairs)


@pytest.mark.parametrize("slots", [2, 3])
def test_a_training_step_copies_each_layer_at_most_twice_and_always_ahead(gemma: TinyGemma, slots: int) -> None:
    """At the end of either pass the slots hold what the way back begins with: 2 (layers - slots) copies."""
    model = adapted(gemma.base, "non-reentrant")
    engine = Told(model)
    with streaming(model, gemma.packs, engine, slots=slots) as streamer:
        for step in range(4):
            engine.told.clear()
            before = streamer.traffic()
            model(**batch(step), use_cache=False).loss.backward()
            moved = streamer.traffic().since(before)
            cold = slots if step == 0 else 0
            assert moved.copies == 2 * (LAYERS - slots) + cold
            assert moved.nbytes == moved.copies * gemma.packs[0].nbytes
            assert engine.on_demand() == (1 if step == 0 else 0)


def test_evaluation_wraps_around_so_that_the_next_pass_finds_its_first_layer(gemma: TinyGemma) -> None:
    model = adapted(gemma.base, "none").eval()
    engine = Told(model)
    with streaming(model, gemma.packs, engine, slots=2), torch.no_grad():
        for step in range(3):
            engine.told.clear()
            model(**batch(step), use_cache=False)
            # 5 layers in 2 slots: the first and the last share a slot, so one copy a pass can't be ahead.
            assert engine.on_demand() == 1
    with streaming(model, gemma.packs, engine, slots=2, resident=(3,)), torch.no_grad():
        for step in range(3):
            engine.told.clear()
            model(**batch(step), use_cache=False)
            assert engine.on_demand() == (1 if step == 0 else 0)


def test_layers_that_all_have_a_slot_are_copied_once(gemma: TinyGemma) -> None:
    model = adapted(gemma.base, "non-reentrant")
    with streaming(model, gemma.packs, SyncEngine(), resident=(0, 1, 3), slots=5) as streamer:
        for step in range(3):
            model(**batch(step), use_cache=False).loss.backward()
        assert streamer.traffic().copies == LAYERS
        assert streamer.device_bytes == LAYERS * gemma.packs[0].nbytes


def test_without_prefetch_every_copy_is_on_demand_and_the_results_are_the_same(gemma: TinyGemma) -> None:
    model = adapted(gemma.base, "non-reentrant")
    engine = Told(model)
    with streaming(model, gemma.packs, engine, prefetch=False) as streamer:
        found = train_steps(model, steps=1)
        assert engine.on_demand() == streamer.traffic().copies > 0
    assert compare(gemma.resident_step, found).identical


class ReadsAndMarks(TorchDispatchMode):
    """Counts operations; `after` of a copy has to lie behind the last one that read the copy's target."""

    def __init__(self) -> None:
        super().__init__()
        self.operations = 0
        self.last_use: dict[int, int] = {}

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.operations += 1
        for value in torch.utils._pytree.tree_leaves((args, kwargs)):
            if isinstance(value, torch.Tensor) and value.dtype == torch.uint8:
                self.last_use[value.untyped_storage().data_ptr()] = self.operations
        return function(*args, **(kwargs or {}))


def test_a_slot_is_overwritten_only_after_its_last_use(gemma: TinyGemma) -> None:
    operations, checked = ReadsAndMarks(), 0

    class Checking(SyncEngine):
        def mark(self) -> Any:
            return operations.operations

        def copy(self, target: torch.Tensor, source: torch.Tensor, after: Any) -> Any:
            nonlocal checked
            if (used := operations.last_use.get(target.untyped_storage().data_ptr())) is not None:
                assert after >= used
                checked += 1
            return super().copy(target, source, after)

    model = adapted(gemma.base, "non-reentrant")
    with streaming(model, gemma.packs, Checking()) as streamer:
        for slot in streamer._slots:  # storages of their own, to tell uses of one slot from uses of another
            slot.buffer = torch.zeros_like(slot.buffer)
        for index in streamer.streamed:
            bind(streamer._layers[index], gemma.packs[index], streamer._slot(streamer._turns[index]).buffer)
        with operations:
            for step in range(2):
                model(**batch(step), use_cache=False).loss.backward()
    assert checked >= 10
