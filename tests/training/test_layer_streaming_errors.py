"""Errors in the middle of a pass, letting go of a model and taking it up otherwise, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from bitsandbytes.nn import Params4bit

from amigo_local.training.copy_engine import SyncEngine, ThreadedEngine
from amigo_local.training.layer_pack import LayerPack, bind, linears_4bit, pack_layer
from amigo_local.training.layer_streaming import LayerStreamer
from tests.support.quantized_model import LAYERS, decoder_layers, load_nf4
from tests.support.streaming_proof import (
    CPU,
    ENGINES,
    Recompute,
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


def fail_in_backward(model: Any, layer: int) -> Any:
    """An out-of-memory in the middle of that layer's backward pass; returns what removes it."""

    def fail(gradient: torch.Tensor) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    def after_forward(module: Any, inputs: Any, output: torch.Tensor) -> None:
        if output.requires_grad:
            output.register_hook(fail)

    linear = dict(linears_4bit(decoder_layers(model)[layer]))["mlp.up_proj"]
    return linear.register_forward_hook(after_forward)


@pytest.mark.parametrize("recompute", ["none", "reentrant", "non-reentrant"])
def test_a_step_is_repeated_after_an_error_in_the_middle_of_its_backward_pass(
    gemma: TinyGemma, recompute: Recompute
) -> None:
    model = adapted(gemma.base, recompute)
    with streaming(model, gemma.packs, ENGINES["now and then late"]()) as streamer:
        for layer, reset in ((LAYERS - 2, False), (1, True)):
            failing = fail_in_backward(model, layer)
            with pytest.raises(torch.OutOfMemoryError):
                model(**batch(50), use_cache=False).loss.backward()
            failing.remove()
            model.zero_grad()
            if reset:
                for slot in streamer._slots:
                    slot.buffer.fill_(255)
                streamer.reset()
        found = train_steps(model, steps=1)
    assert compare(gemma.resident_step, found).identical


def test_closing_leaves_the_model_as_it_was_and_it_can_be_attached_otherwise(gemma: TinyGemma) -> None:
    model = adapted(gemma.base, "non-reentrant")
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    hooks = [(len(m._forward_pre_hooks), len(m._forward_hooks)) for m in model.modules()]
    start = {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}
    for kept, slots in (((), 2), ((1, 4), 1), (tuple(range(LAYERS)), 2)):
        with streaming(model, gemma.packs, ThreadedEngine(late=1.0), resident=kept, slots=slots):
            assert compare(gemma.resident_step, train_steps(model, steps=1)).identical
        for name, parameter in model.named_parameters():
            if name in start:
                parameter.data.copy_(start[name])
            assert torch.equal(parameter, before[name])
        assert hooks == [(len(m._forward_pre_hooks), len(m._forward_hooks)) for m in model.modules()]
    for layer, pack in zip(decoder_layers(model), gemma.packs, strict=True):
        assert torch.equal(pack_layer(layer).flat, pack.flat)
    assert compare(gemma.resident_step, train_steps(model, steps=1)).identical  # on the host's packs, streaming nothing


def test_closing_waits_for_what_is_still_on_its_way(gemma: TinyGemma) -> None:
    """Its target is memory that is given back."""

    class Pending(SyncEngine):
        def __init__(self) -> None:
            super().__init__()
            self.pending: list[object] = []

        def copy(self, target: torch.Tensor, source: torch.Tensor, after: Any) -> Any:
            super().copy(target, source, after)
            self.pending.append(ticket := object())
            return ticket

        def wait(self, ticket: Any) -> None:
            self.pending.remove(ticket)

    model, engine = adapted(gemma.base, "none").eval(), Pending()
    with streaming(model, gemma.packs, engine, slots=3), torch.no_grad():
        model(**batch(0), use_cache=False)
        assert len(engine.pending) == 1  # a layer for the pass that would follow
    assert not engine.pending


def test_a_backward_pass_over_a_forward_pass_from_before_closing_is_an_error(gemma: TinyGemma) -> None:
    model = adapted(gemma.base, "none")
    with streaming(model, gemma.packs, SyncEngine()):
        loss = model(**batch(0), use_cache=False).loss
    with pytest.raises(RuntimeError, match="closed"):
        loss.backward()


def test_an_engine_that_fails_is_heard_and_the_model_is_let_go(gemma: TinyGemma) -> None:
    class Broken(SyncEngine):
        def __init__(self, whole: int) -> None:
            super().__init__()
            self._left = whole

        def copy(self, target: torch.Tensor, source: torch.Tensor, after: Any) -> Any:
            if self._left == 0:
                raise RuntimeError("the card is gone")
            self._left -= 1
            return super().copy(target, source, after)

    model = adapted(gemma.base, "non-reentrant")
    for whole in (0, 4, 7, 10):  # in the first layer, in the middle of either pass, in the next step
        with streaming(model, gemma.packs, Broken(whole)), pytest.raises(RuntimeError, match="the card is gone"):
            for step in range(2):
                model(**batch(step), use_cache=False).loss.backward()
        model.zero_grad()
    with pytest.raises(RuntimeError, match="the card is gone"):  # while layers are made resident
        LayerStreamer(decoder_layers(model), gemma.packs, CPU, engine=Broken(3), resident=range(LAYERS))
    assert compare(gemma.resident_step, train_steps(model, steps=1)).identical  # let go each time


@pytest.mark.parametrize("where", ["copy", "wait"])
@pytest.mark.parametrize("calls", [0, 3, 5, 7])
def test_a_copy_that_failed_half_done_is_made_again(gemma: TinyGemma, where: str, calls: int) -> None:
    class FailsOnce(SyncEngine):
        def __init__(self) -> None:
            super().__init__()
            self._left = calls

        def copy(self, target: torch.Tensor, source: torch.Tensor, after: Any) -> Any:
            super().copy(target, source, after)
            self._fail("copy", target)
            return target

        def wait(self, ticket: Any) -> None:
            self._fail("wait", ticket)

        def _fail(self, now: str, target: torch.Tensor) -> None:
            self._left -= now == where
            if now == where and self._left == -1:
                target[target.numel() // 2 :].fill_(255)
                raise RuntimeError("the card is gone")

    model = adapted(gemma.base, "non-reentrant")
    with streaming(model, gemma.packs, FailsOnce()):
        with pytest.raises(RuntimeError, match="the card is gone"):
            model(**batch(0), use_cache=False).loss.backward()
        model.zero_grad()
        assert compare(gemma.resident_step, train_steps(model, steps=1)).identical


def test_what_does_not_fit_together_is_refused(gemma: TinyGemma) -> None:
    layers, packs = decoder_layers(load_nf4(gemma.base)), gemma.packs
    for wrong in ({"slots": 0}, {"resident": (5,)}, {"resident": (-1,)}):
        with pytest.raises(ValueError, match="slots"):
            LayerStreamer(layers, packs, CPU, engine=SyncEngine(), **wrong)
    with pytest.raises(ValueError, match="5 layers, 4 packs"):
        LayerStreamer(layers, packs[1:], CPU, engine=SyncEngine())
    without = tuple(tensor for tensor in packs[0].tensors if tensor.module != "mlp.up_proj")
    with pytest.raises(ValueError, match=r"mlp\.up_proj"):
        bind(layers[0], LayerPack(packs[0].flat, without), packs[0].flat)
    foreign = [*packs[:3], LayerPack(packs[3].flat, without), packs[4]]
    with pytest.raises(ValueError, match=r"mlp\.up_proj"):
        LayerStreamer(layers, foreign, CPU, engine=SyncEngine())
    assert torch.equal(pack_layer(layers[0]).flat, packs[0].flat)  # bound before the one that failed, and let go


def test_binding_takes_the_code_books_to_the_device_of_the_buffer(gemma: TinyGemma) -> None:
    """`meta` stands for the card: what stays behind on the host would be an illegal address there."""
    layer = decoder_layers(load_nf4(gemma.base))[0]
    for _, linear in linears_4bit(layer):
        state = linear.weight.quant_state
        linear.weight = Params4bit(torch.empty(0, device="meta"), quant_state=state, bnb_quantized=True)
    bind(layer, gemma.packs[0], torch.empty(gemma.packs[0].nbytes, dtype=torch.uint8, device="meta"))
    for _, linear in linears_4bit(layer):
        state = linear.weight.quant_state
        tensors = (linear.weight, state.absmax, state.code, state.offset, state.state2.absmax, state.state2.code)
        assert {tensor.device.type for tensor in tensors} == {"meta"}
