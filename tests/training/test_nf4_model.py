"""The model over a store is the one that transformers loads and quantizes by itself: bytes, logits, training."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import peft
import pytest
import torch

from amigo_local.domain.errors import InputError
from amigo_local.training.layer_pack import linears_4bit
from amigo_local.training.nf4_build import build_store
from amigo_local.training.nf4_model import build_model
from amigo_local.training.nf4_store import open_store
from amigo_local.weights.weight_source import CheckpointWeights
from tests.support.quantized_model import load_nf4, lora
from tests.support.tiny_families import FAMILIES, VOCABULARY, write_family


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("families")
    made = {name: write_family(folder / name, name) for name in FAMILIES}
    for name, checkpoint in made.items():
        store = folder / f"{name}.nf4"
        store.mkdir()
        shutil.copyfile(checkpoint / "config.json", store / "config.json")
        build_store(CheckpointWeights(checkpoint), "sha256:x", store, lambda event: None)
    return made


def ours(checkpoint: Path, dtype: torch.dtype = torch.bfloat16) -> Any:
    return build_model(open_store(checkpoint.with_name(f"{checkpoint.name}.nf4")), dtype)


def tokens(seed: int) -> torch.Tensor:
    return torch.randint(3, VOCABULARY, (2, 40), generator=torch.Generator().manual_seed(seed))


def same(mine: torch.Tensor, theirs: torch.Tensor) -> bool:
    return mine.dtype == theirs.dtype and mine.shape == theirs.shape and torch.equal(mine, theirs)


@pytest.mark.parametrize("name", FAMILIES)
def test_every_linear_norm_bias_and_buffer_is_the_same(name: str, checkpoints: dict[str, Path]) -> None:
    model, reference = ours(checkpoints[name]), load_nf4(checkpoints[name])
    linears = dict(linears_4bit(model))
    assert len(linears) == (4 if name == "phi3" else 7) * model.config.num_hidden_layers
    for module_name, theirs in linears_4bit(reference):
        mine = linears.pop(module_name)
        for got, expected in zip(_parts(mine.weight), _parts(theirs.weight), strict=True):
            assert same(got, expected), module_name
        fields = ("shape", "dtype", "blocksize", "quant_type", "nested")
        states = mine.weight.quant_state, theirs.weight.quant_state
        assert [getattr(states[0], it) for it in fields] == [getattr(states[1], it) for it in fields]
        assert (mine.compute_dtype, mine.quant_storage) == (theirs.compute_dtype, theirs.quant_storage)
    assert not linears
    small = {key: value for key, value in model.named_parameters() if key.endswith(("norm.weight", "bias"))}
    expected = {key: value for key, value in reference.named_parameters() if key.endswith(("norm.weight", "bias"))}
    assert small.keys() == expected.keys() and all(same(small[key], expected[key]) for key in small)
    buffers, expected = dict(model.named_buffers()), dict(reference.named_buffers())
    rotary = [key for key in expected if "inv_freq" in key]
    assert rotary and all(same(buffers[key], expected[key]) for key in rotary)


def _parts(weight: Any) -> Iterator[torch.Tensor]:
    state = weight.quant_state
    yield from (weight.data, state.absmax, state.state2.absmax, state.offset, state.code, state.state2.code)


@pytest.mark.parametrize("name", FAMILIES)
def test_logits_are_the_same_to_the_bit(name: str, checkpoints: dict[str, Path]) -> None:
    model, reference = ours(checkpoints[name]), load_nf4(checkpoints[name])
    with torch.no_grad():
        got, expected = model(tokens(0)).logits, reference(tokens(0)).logits
    assert same(got, expected) and got.std() > 0.1


def test_it_computes_in_float32_where_that_is_asked_for(checkpoints: dict[str, Path]) -> None:
    model = ours(checkpoints["gemma3"], torch.float32)
    reference = load_nf4(checkpoints["gemma3"], dtype=torch.float32)
    with torch.no_grad():
        assert same(model.train()(tokens(0)).logits, reference.train()(tokens(0)).logits)


@pytest.mark.parametrize("name", FAMILIES)
def test_training_gives_the_same_losses_and_adapters(name: str, checkpoints: dict[str, Path]) -> None:
    mine, theirs = _train(ours(checkpoints[name])), _train(load_nf4(checkpoints[name]))
    assert mine[0] == theirs[0] and len(set(mine[0])) == 3
    assert mine[1].keys() == theirs[1].keys()
    assert all(torch.equal(mine[1][key], theirs[1][key]) for key in mine[1])


def _train(model: Any) -> tuple[list[float], dict[str, torch.Tensor]]:
    """Three steps of AdamW on LoRA of all linears, with dropout."""
    torch.manual_seed(0)
    adapted = peft.get_peft_model(model, lora())
    weights = {key: value for key, value in adapted.named_parameters() if value.requires_grad}
    assert len(weights) == 2 * len(dict(linears_4bit(adapted))) and all("lora_" in key for key in weights)
    optimizer = torch.optim.AdamW(weights.values(), lr=1e-2)
    adapted.train()
    losses = []
    for step in range(3):
        loss = adapted(input_ids=tokens(step), labels=tokens(step)).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses, {key: value.detach() for key, value in weights.items()}


def test_it_is_marked_as_quantized_and_frozen(checkpoints: dict[str, Path]) -> None:
    """What Trainer, accelerate, PEFT and TRL look at."""
    model, reference = ours(checkpoints["gemma3"]), load_nf4(checkpoints["gemma3"])
    for name in ("is_loaded_in_4bit", "is_quantized", "quantization_method", "training", "dtype"):
        assert getattr(model, name) == getattr(reference, name), name
    assert model.config.quantization_config.to_dict() == reference.config.quantization_config.to_dict()
    assert type(model.hf_quantizer) is type(reference.hf_quantizer) and model.hf_quantizer.is_trainable
    assert not any(parameter.requires_grad for parameter in model.parameters())
    assert model.config.use_cache is False
    assert model.config._attn_implementation == "sdpa"


def test_weights_are_the_mapped_bytes_themselves(checkpoints: dict[str, Path]) -> None:
    store = open_store(checkpoints["qwen3"].with_name("qwen3.nf4"))
    model = build_model(store, torch.bfloat16)
    for layer, pack in zip(model.model.layers, store.packs, strict=True):
        start, end = pack.flat.data_ptr(), pack.flat.data_ptr() + pack.nbytes
        for _, module in linears_4bit(layer):
            assert start <= module.weight.data_ptr() < end
            assert start <= module.weight.quant_state.state2.absmax.data_ptr() < end


def test_evaluating_on_a_processor_with_bfloat16_does_not_repack_weights(checkpoints: dict[str, Path]) -> None:
    model = ours(checkpoints["llama"])
    before = [module.weight.data.clone() for _, module in linears_4bit(model)]
    with torch.no_grad():
        model.eval()(tokens(0))
    for (_, module), weight in zip(linears_4bit(model), before, strict=True):
        assert torch.equal(module.weight.data, weight)
        assert not getattr(module.weight.quant_state, "packing_format_for_cpu", False)


def test_a_config_of_another_model_is_refused(checkpoints: dict[str, Path], tmp_path: Path) -> None:
    shutil.copytree(checkpoints["llama"].with_name("llama.nf4"), tmp_path / "store")
    path = tmp_path / "store" / "config.json"
    path.write_text(path.read_text().replace('"num_hidden_layers": 2', '"num_hidden_layers": 3'))
    with pytest.raises(InputError, match=r"2 layers in the store, 3 in its config\.json"):
        build_model(open_store(tmp_path / "store"), torch.bfloat16)
    shutil.copyfile(checkpoints["phi3"] / "config.json", path)
    with pytest.raises(InputError, match=r"its layers have other linears than those of its config\.json"):
        build_model(open_store(tmp_path / "store"), torch.bfloat16)
