"""Errors in the middle of a pass, letting go of a model and taking it up otherwise, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from bitsandbytes.nn import Params4bit

from amigo_local.training.copy_engine import SyncEngine, ThreadedEngine
from amigo_local.training.layer_pack import LayerPack, bind, linears_4bit, pack_layer
from amigo_local.training.layer_streaming import LayerStreamer
from tests.support.quantized_model import LAYERS, decoder_layers, load_nf4, write_tiny_gemma
from tests.support.streaming_proof import (
    CPU,
    ENGINES,
    Recompute,
    Record,
    adapted,
    batch,
    compare,
    packs_of,
    streaming,
    train_steps,
)


@pytest.fixture(scope="module")
def tiny_gemma(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_gemma(tmp_path_factory.mktemp("streaming") / "gemma")


@pytest.fixture(scope="module")
def packs(tiny_gemma: Path) -> list[LayerPack]:
    return packs_of(tiny_gemma)


@pytest.fixture(scope="module")
def resident_step(tiny_gemma: Path) -> Record:
    """One step of the plain model as transformers, bitsandbytes and PEFT make it."""
    return train_steps(adapted(tiny_gemma, "none"), steps=1)


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
    tiny_gemma: Path, packs: list[LayerPack], resident_step: Record, recompute: Recompute
) -> None:
    model = adapted(tiny_gemma, recompute)
    with streaming(model, packs, ENGINES["now and then late"]()) as streamer:
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
    assert compare(resident_step, found).identical


def test_closing_leaves_the_model_as_it_was_and_it_can_be_attached_otherwise(
    tiny_gemma: Path, packs: list[LayerPack], resident_step: Record
) -> None:
    model = adapted(tiny_gemma, "non-reentrant")
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    hooks = [(len(m._forward_pre_hooks), len(m._forward_hooks)) for m in model.modules()]
    start = {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}
    for kept, slots in (((), 2), ((1, 4), 1), (tuple(range(LAYERS)), 2)):
        with streaming(model, packs, ThreadedEngine(late=1.0), resident=kept, slots=slots):
            assert compare(resident_step, train_steps(model, steps=1)).identical
        for name, parameter in model.named_parameters():
            if name in start:
                parameter.data.copy_(start[name])
            assert torch.equal(parameter, before[name])
        assert hooks == [(len(m._forward_pre_hooks), len(m._forward_hooks)) for m in model.modules()]
    for layer, pack in zip(decoder_layers(model), packs, strict=True):
        assert torch.equal(pack_layer(layer).flat, pack.flat)
    assert compare(resident_step, train_steps(model, steps=1)).identical  # on the host's packs, streaming nothing


def test_a_backward_pass_over_a_forward_pass_from_before_closing_is_an_error(
    tiny_gemma: Path, packs: list[LayerPack]
) -> None:
    model = adapted(tiny_gemma, "none")
    with streaming(model, packs, SyncEngine()):
        loss = model(**batch(0), use_cache=False).loss
    with pytest.raises(RuntimeError, match="closed"):
        loss.backward()


def test_an_engine_that_fails_is_heard_and_the_model_is_let_go(
    tiny_gemma: Path, packs: list[LayerPack], resident_step: Record
) -> None:
    class Broken(SyncEngine):
        def __init__(self, whole: int) -> None:
            super().__init__()
            self._left = whole

        def copy(self, target: torch.Tensor, source: torch.Tensor, after: Any) -> Any:
            if self._left == 0:
                raise RuntimeError("the card is gone")
            self._left -= 1
            return super().copy(target, source, after)

    model = adapted(tiny_gemma, "non-reentrant")
    for whole in (0, 4, 7, 10):  # in the first layer, in the middle of either pass, in the next step
        with streaming(model, packs, Broken(whole)), pytest.raises(RuntimeError, match="the card is gone"):
            for step in range(2):
                model(**batch(step), use_cache=False).loss.backward()
        model.zero_grad()
    with pytest.raises(RuntimeError, match="the card is gone"):  # while layers are made resident
        LayerStreamer(decoder_layers(model), packs, CPU, engine=Broken(3), resident=range(LAYERS))
    assert compare(resident_step, train_steps(model, steps=1)).identical  # let go each time


def test_what_does_not_fit_together_is_refused(tiny_gemma: Path, packs: list[LayerPack]) -> None:
    layers = decoder_layers(load_nf4(tiny_gemma))
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


def test_binding_takes_the_code_books_to_the_device_of_the_buffer(tiny_gemma: Path, packs: list[LayerPack]) -> None:
    """`meta` stands for the card: what stays behind on the host would be an illegal address there."""
    layer = decoder_layers(load_nf4(tiny_gemma))[0]
    for _, linear in linears_4bit(layer):
        state = linear.weight.quant_state
        linear.weight = Params4bit(torch.empty(0, device="meta"), quant_state=state, bnb_quantized=True)
    bind(layer, packs[0], torch.empty(packs[0].nbytes, dtype=torch.uint8, device="meta"))
    for _, linear in linears_4bit(layer):
        state = linear.weight.quant_state
        tensors = (linear.weight, state.absmax, state.code, state.offset, state.state2.absmax, state.state2.code)
        assert {tensor.device.type for tensor in tensors} == {"meta"}
