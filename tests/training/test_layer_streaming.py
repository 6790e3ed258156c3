"""Layers that take turns in device buffers train, evaluate and generate exactly as layers that stay there do."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

from amigo_local.training.copy_engine import CopyEngine, SyncEngine, ThreadedEngine
from amigo_local.training.layer_pack import pack_layer
from amigo_local.training.layer_streaming import LayerStreamer, initialise_magnitudes, spread_evenly
from tests.support.quantized_model import LAYERS, decoder_layers, load_nf4, lora
from tests.support.streaming_proof import (
    CPU,
    ENGINES,
    HooksOnLayers,
    NeverWaits,
    OneCopyLate,
    Recompute,
    Record,
    SlotsInTurn,
    TinyGemma,
    adapted,
    batch,
    compare,
    stir,
    streaming,
    train_steps,
)

COMPARED = 2 * (2 + 70 + 1 + 2) + 70
"""Of one run: two steps of 2 losses, 70 gradients, a reference pass and 2 evaluations; then 70 weights."""


@pytest.fixture(scope="module")
def gemma(tmp_path_factory: pytest.TempPathFactory) -> TinyGemma:
    return TinyGemma(tmp_path_factory.mktemp("streaming") / "gemma")


# Every way of recomputing, every engine, 1 to 3 slots, all layers streamed and some, wrapped before and after.
RUNS: list[tuple[Recompute, str, int, tuple[int, ...]]] = [
    ("none", "late", 2, ()),
    ("none", "at once", 3, (2,)),
    ("reentrant", "ring", 2, ()),
    ("non-reentrant", "ring, late", 2, (0, 4)),
    ("non-reentrant", "now and then late", 1, ()),
    ("every second layer", "late", 3, ()),
    ("offloaded", "ring", 2, (1, 2)),
]


@pytest.mark.parametrize(("recompute", "engine", "slots", "kept"), RUNS)
def test_losses_gradients_and_adapters_are_bit_identical_to_the_resident_model(
    gemma: TinyGemma,
    recompute: Recompute,
    engine: str,
    slots: int,
    kept: tuple[int, ...],
) -> None:
    model = adapted(gemma.base, recompute)
    with streaming(model, gemma.packs, ENGINES[engine](), resident=kept, slots=slots):
        found = train_steps(model)
    assert compare(gemma.resident, found) == (COMPARED, COMPARED)


@pytest.mark.slow
@pytest.mark.parametrize("slots", [1, 2, 3])
@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("recompute", ["none", "reentrant", "non-reentrant", "every second layer", "offloaded"])
def test_every_combination_is_bit_identical(gemma: TinyGemma, recompute: Recompute, engine: str, slots: int) -> None:
    for streamed in (1, 3, LAYERS):
        model = adapted(gemma.base, recompute)
        kept = tuple(spread_evenly(LAYERS, streamed))
        with streaming(model, gemma.packs, ENGINES[engine](), resident=kept, slots=slots):
            found = train_steps(model)
        assert compare(gemma.resident, found) == (COMPARED, COMPARED)


def test_layers_may_be_wrapped_by_peft_after_they_were_attached(gemma: TinyGemma) -> None:
    from peft import get_peft_model

    engine, attached = ThreadedEngine(late=1.0), []

    def attach_and_wrap(model: Any, config: Any) -> Any:
        attached.append(LayerStreamer(decoder_layers(model), gemma.packs, CPU, engine=engine))
        return get_peft_model(model, config)

    found = train_steps(adapted(gemma.base, "non-reentrant", wrap=attach_and_wrap), steps=1)
    assert compare(gemma.resident_step, found).identical
    attached[0].close()
    engine.close()


@pytest.mark.parametrize(
    ("engine", "kind", "slots", "at_most"),
    [
        (NeverWaits, LayerStreamer, 2, 0),
        (OneCopyLate, LayerStreamer, 2, 0),
        # What they get right are forward passes, and gradients of layers that happen to be there.
        (SyncEngine, HooksOnLayers, 2, COMPARED // 4),
        (SyncEngine, SlotsInTurn, 3, COMPARED // 4),
    ],
)
def test_negative_controls_are_far_from_identical(
    gemma: TinyGemma,
    engine: Callable[[], CopyEngine],
    kind: type[LayerStreamer],
    slots: int,
    at_most: int,
) -> None:
    model = adapted(gemma.base, "non-reentrant")
    with streaming(model, gemma.packs, engine(), slots=slots, kind=kind):
        found = train_steps(model)
    assert compare(gemma.resident, found).equal <= at_most


def test_generation_with_a_cache_gives_the_same_tokens(gemma: TinyGemma) -> None:
    model = adapted(gemma.base, "non-reentrant").eval()
    prompt = batch(3)["input_ids"]
    asked = {"max_new_tokens": 12, "do_sample": False, "use_cache": True, "output_scores": True}
    expected = model.generate(input_ids=prompt, **asked, return_dict_in_generate=True)
    for slots, kept in ((1, ()), (2, ()), (2, (3,))):
        with streaming(model, gemma.packs, ThreadedEngine(late=1.0), slots=slots, resident=kept):
            found = model.generate(input_ids=prompt, **asked, return_dict_in_generate=True)
        assert torch.equal(expected.sequences, found.sequences)
        assert all(torch.equal(one, other) for one, other in zip(expected.scores, found.scores, strict=True))
    assert len(expected.scores) == 12


# DoRA reads the weight itself, for its norm.


@pytest.fixture(scope="module")
def resident_dora(gemma: TinyGemma) -> Record:
    return train_steps(adapted(gemma.base, "non-reentrant", dora=True), steps=1)


def test_dora_wrapped_before_attaching_is_bit_identical(gemma: TinyGemma, resident_dora: Record) -> None:
    model = adapted(gemma.base, "non-reentrant", dora=True)
    with streaming(model, gemma.packs, ThreadedEngine(late=1.0)):
        found = train_steps(model, steps=1)
    assert sum("magnitude" in name for name in found) == 2 * 7 * LAYERS  # gradients and weights
    assert compare(resident_dora, found).identical


@pytest.mark.parametrize("initialised", [True, False])
def test_dora_wrapped_after_attaching_is_bit_identical_once_its_magnitudes_are_initialised(
    gemma: TinyGemma, resident_dora: Record, initialised: bool
) -> None:
    from peft import get_peft_model

    engine, attached = ThreadedEngine(late=1.0), []

    def attach_and_wrap(model: Any, config: Any) -> Any:
        layers = decoder_layers(model)
        attached.append(LayerStreamer(layers, gemma.packs, CPU, engine=engine, resident=(2,)))
        wrapped = get_peft_model(model, config)
        if initialised:
            initialise_magnitudes(attached[0], layers)
        return wrapped

    found = train_steps(adapted(gemma.base, "non-reentrant", dora=True, wrap=attach_and_wrap), steps=1)
    assert compare(resident_dora, found).identical == initialised
    attached[0].close()
    engine.close()


def test_loaded_shows_the_weights_of_any_layer(gemma: TinyGemma) -> None:
    model = load_nf4(gemma.base)
    with streaming(model, gemma.packs, ThreadedEngine(late=1.0), resident=(2,)) as streamer:
        for index in (0, 4, 2, 3, 3, 0):
            with streamer.loaded(index) as layer:
                assert torch.equal(pack_layer(layer).flat, gemma.packs[index].flat)


@pytest.mark.parametrize("layers", [1, 7, 26, 48])
def test_streamed_layers_are_spread_evenly(layers: int) -> None:
    for streamed in range(layers + 1):
        kept = spread_evenly(layers, streamed)
        assert len(kept) == layers - streamed
        turns = sorted(set(range(layers)) - kept)
        gaps = [after - before for before, after in itertools.pairwise(turns)]
        assert not gaps or max(gaps) - min(gaps) <= 1
    with pytest.raises(ValueError, match="streamed layers of"):
        spread_evenly(layers, layers + 1)


def test_spreading_matches_the_plan_for_twelve_b() -> None:
    assert sorted(set(range(48)) - spread_evenly(48, 20))[:5] == [1, 3, 6, 8, 10]


def stirred(model: Any) -> Any:
    from peft import get_peft_model

    wrapped = get_peft_model(model, lora())
    stir(wrapped)
    return wrapped.train()


@pytest.fixture
def card() -> Iterator[torch.device]:
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA card: run it on a machine that has one")
    yield torch.device("cuda", 0)


@pytest.mark.gpu
@pytest.mark.parametrize(("slots", "kept"), [(1, ()), (2, ()), (3, (1, 4)), (2, (0, 2, 3))])
@pytest.mark.parametrize("staging", ["ring", "pinned"])
def test_on_a_card_streamed_is_bit_identical_to_resident(
    gemma: TinyGemma, card: torch.device, staging: Any, slots: int, kept: tuple[int, ...]
) -> None:
    from amigo_local.training.cuda_engine import CudaDevice, CudaEngine
    from amigo_local.training.pinned_memory import PinnedMemory

    def run(model: Any) -> Record:
        inputs = {name: ids.to(card) for name, ids in batch(0).items()}
        record: Record = {}
        for step in range(4):
            torch.manual_seed(step)
            loss = model(**inputs, use_cache=False).loss
            loss.backward()
            record |= {f"loss {step}": loss.detach()}
            record |= {f"{step} {n}": p.grad.clone() for n, p in model.named_parameters() if p.requires_grad}
        return record

    expected = run(stirred(load_nf4(gemma.base, "cuda:0")).to(card))
    memory = PinnedMemory(CudaDevice(card))
    sources = [memory.hold(pack) for pack in gemma.packs] if staging == "pinned" else gemma.packs
    model = stirred(load_nf4(gemma.base, "cuda:0")).to(card)
    engine = CudaEngine(card, staging, chunk_bytes=4096, chunks=2)
    streamer = LayerStreamer(decoder_layers(model), sources, card, engine=engine, resident=kept, slots=slots)
    assert compare(expected, run(model)).identical
    streamer.close()
    engine.close()
    memory.close()
