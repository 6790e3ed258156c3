"""An MLP run in tiles of tokens, against the same MLP run at once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from amigo_local.training.copy_engine import ThreadedEngine
from amigo_local.training.layer_pack import linears_4bit, pack_layer
from amigo_local.training.layer_streaming import LayerStreamer
from amigo_local.training.tiled_mlp import tile_mlps
from tests.support.quantized_model import decoder_layers, load_nf4, lora, write_tiny_gemma
from tests.support.storage_watch import StorageWatch


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_gemma(tmp_path_factory.mktemp("mlp"))


def adapted(checkpoint: Path) -> Any:
    """NF4, everything else and all products in f32; LoRA away from zero."""
    from peft import get_peft_model

    model = torch.nn.Module.to(load_nf4(checkpoint), torch.float32)
    for _, linear in linears_4bit(model):
        linear.compute_dtype = torch.float32
    torch.manual_seed(0)
    model = get_peft_model(model, lora(dropout=0.0))
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = torch.randn_like(parameter, dtype=torch.float32) * 0.05
    return model.train()


def losses_and_gradients(model: Any, shape: tuple[int, int]) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    torch.manual_seed(1)
    ids = torch.randint(3, 500, shape)
    loss = model(input_ids=ids, labels=ids, position_ids=torch.arange(shape[1]).expand(shape)).loss
    loss.backward()
    return loss.detach(), {name: p.grad for name, p in model.named_parameters() if p.requires_grad}


@pytest.mark.parametrize("shape", [(1, 50), (3, 17)])
@pytest.mark.parametrize("checkpointing", [None, True, False])
def test_losses_and_gradients_are_those_of_the_whole_mlp(
    checkpoint: Path, shape: tuple[int, int], checkpointing: bool | None
) -> None:
    """checkpointing: of decoder layers, reentrant or not; tiles are recomputed within the recomputed layer."""
    results = []
    for tile_tokens in (None, 16):
        model = adapted(checkpoint)
        if checkpointing is not None:
            model.gradient_checkpointing_enable({"use_reentrant": checkpointing})
            model.enable_input_require_grads()
        if tile_tokens is not None:
            tile_mlps(decoder_layers(model), tile_tokens)
        results.append(losses_and_gradients(model, shape))
    (whole_loss, whole_gradients), (tiled_loss, tiled_gradients) = results
    torch.testing.assert_close(tiled_loss, whole_loss, rtol=1e-6, atol=0)
    for name, gradient in whole_gradients.items():
        torch.testing.assert_close(tiled_gradients[name], gradient, rtol=1e-4, atol=1e-6)
        assert gradient.abs().max() > 1e-5


def test_names_stay_so_that_adapters_fit_in_either_order(checkpoint: Path) -> None:
    from peft import get_peft_model

    before, after = load_nf4(checkpoint), adapted(checkpoint)
    tile_mlps(decoder_layers(before), 16)
    names = [name for name, _ in after.named_parameters()]
    assert [name for name, _ in get_peft_model(before, lora()).named_parameters()] == names


class Counts:
    """How many tokens each call of a linear saw."""

    def __init__(self, linear: torch.nn.Module) -> None:
        self.tokens: list[int] = []
        linear.register_forward_pre_hook(lambda _, args: self.tokens.append(args[0].reshape(-1, 64).shape[0]))


def test_hooks_of_the_linears_fire_for_each_tile_and_again_when_it_is_recomputed(checkpoint: Path) -> None:
    """What a LayerStreamer depends on."""
    model = adapted(checkpoint)
    layer = decoder_layers(model)[2]
    seen = Counts(layer.mlp.gate_proj.base_layer)
    tile_mlps(decoder_layers(model), 16)
    losses_and_gradients(model, (1, 50))
    assert seen.tokens == [13, 13, 12, 12, 12, 12, 13, 13]
    seen.tokens.clear()
    with torch.no_grad():
        model(input_ids=torch.arange(1, 6)[None])
    assert seen.tokens == [5]


@pytest.mark.parametrize("training", [True, False])
def test_activations_of_one_tile_are_alive_at_once(training: bool) -> None:
    from transformers import Gemma3TextConfig
    from transformers.models.gemma3.modeling_gemma3 import Gemma3MLP

    class Layer(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.mlp = Gemma3MLP(Gemma3TextConfig(hidden_size=16, intermediate_size=512)).requires_grad_(False)

    peaks = {}
    for tile_tokens in (None, 32):
        layer, hidden = Layer(), torch.randn(1, 256, 16, requires_grad=training)
        if tile_tokens is not None:
            tile_mlps([layer], tile_tokens)
        with StorageWatch(hidden, *layer.parameters()) as watch, torch.set_grad_enabled(training):
            out = layer.mlp(hidden)
            if training:
                out.backward(torch.ones_like(out))
        peaks[tile_tokens] = watch.peak_bytes
    one_activation = 256 * 512 * 4
    assert peaks[None] > 2 * one_activation
    assert peaks[32] < peaks[None] / 4


def test_a_tile_of_no_tokens_is_a_mistake() -> None:
    with pytest.raises(ValueError, match="tile of 0 tokens"):
        tile_mlps([], 0)


def test_tiles_run_on_weights_that_stream_through_slots(checkpoint: Path) -> None:
    """Copies that arrive when they are waited for; nothing but the place of the weights changes, so not a bit does."""
    results = []
    for streamed in (True, False):
        model, engine = adapted(checkpoint), ThreadedEngine(late=1.0)
        layers = decoder_layers(model)
        tile_mlps(layers, 16)
        model.gradient_checkpointing_enable({"use_reentrant": False})
        if streamed:
            packs = [pack_layer(layer) for layer in layers]
            streamer = LayerStreamer(layers, packs, torch.device("cpu"), engine=engine, resident={1}, slots=2)
            assert streamer.streamed == (0, 2, 3, 4)
        results.append(losses_and_gradients(model, (1, 50)))
        engine.close()
    assert torch.equal(results[0][0], results[1][0])
    assert all(torch.equal(gradient, results[1][1][name]) for name, gradient in results[0][1].items())
