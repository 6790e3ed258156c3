from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path

import pytest
import safetensors.numpy
import safetensors.torch
import torch

from amigo_local.domain.errors import InputError
from amigo_local.weights.adapter import check_adapter_fits, read_adapter
from amigo_local.weights.safetensors_file import read_checkpoint
from amigo_local.weights.weight_change import EmbeddingLora, LoraModule, Replacement
from tests.weights.conftest import write_adapter

QUERY = "model.layers.0.self_attn.q_proj.weight"


def _copy(adapter: Path, out: Path, **changes: object) -> Path:
    out.mkdir()
    config = json.loads((adapter / "adapter_config.json").read_text()) | changes
    (out / "adapter_config.json").write_text(json.dumps(config))
    (out / "adapter_model.safetensors").write_bytes((adapter / "adapter_model.safetensors").read_bytes())
    return out


def test_modules_factors_and_scaling_are_read(llama_adapter: Path) -> None:
    adapter = read_adapter(llama_adapter)
    assert len(adapter.modules) == 28
    module = adapter.modules[QUERY]
    assert (module.name, module.shape, module.scaling) == ("model.layers.0.self_attn.q_proj", (256, 256), 2.0)
    saved = safetensors.torch.load_file(llama_adapter / "adapter_model.safetensors")
    a, b = module.factors()
    assert torch.equal(torch.from_numpy(a), saved["base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"])
    assert torch.equal(torch.from_numpy(b), saved["base_model.model.model.layers.0.self_attn.q_proj.lora_B.weight"])
    assert adapter.parameters == sum(tensor.numel() for tensor in saved.values())


def test_scaling_follows_rslora_and_patterns_as_in_peft(
    exact_llama: Path, unpacked: Callable[[Path], Path], tmp_path: Path
) -> None:
    import peft
    import transformers

    settings = {
        "use_rslora": True,
        "rank_pattern": {"down_proj": 4, r"layers\.1\.self_attn\.q_proj": 2},
        "alpha_pattern": {"mlp.up_proj": 3, "^model.layers.2.self_attn.k_proj": 5},
    }
    checkpoint = unpacked(exact_llama)
    write_adapter(checkpoint, tmp_path, **settings)
    model = peft.PeftModel.from_pretrained(
        transformers.AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32), str(tmp_path)
    )
    expected = {
        name.removeprefix("base_model.model.") + ".weight": layer.scaling["default"]
        for name, layer in model.named_modules()
        if "default" in (layer.scaling if isinstance(getattr(layer, "scaling", None), dict) else {})
    }
    found = {name: module.scaling for name, module in read_adapter(tmp_path).modules.items()}
    assert found == pytest.approx(expected)
    assert found["model.layers.0.mlp.down_proj.weight"] == 16 / math.sqrt(4)
    assert found["model.layers.1.self_attn.q_proj.weight"] == 16 / math.sqrt(2)
    assert found["model.layers.3.mlp.up_proj.weight"] == 3 / math.sqrt(8)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"peft_type": "LOHA"}, "peft_type is 'LOHA'"),
        ({"use_dora": True}, "has no DoRA magnitude, adapter_config.json says use_dora=True"),
        ({"bias": "all"}, "bias is 'all'"),
        ({"lora_bias": True}, "lora_bias is True"),
        ({"fan_in_fan_out": True}, "fan_in_fan_out is True"),
        ({"trainable_token_indices": [1]}, "trainable_token_indices is"),
        ({"target_parameters": ["w"]}, "target_parameters is"),
        ({"layer_replication": [[0, 2]]}, "layer_replication is"),
        ({"init_lora_weights": "pissa_niter_4"}, "init_lora_weights is 'pissa_niter_4'"),
        ({"r": 16}, "has rank 8, adapter_config.json says 16"),
    ],
)
def test_what_is_not_plain_lora_is_refused_by_name(
    changes: dict[str, object], named: str, llama_adapter: Path, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=named) as caught:
        read_adapter(_copy(llama_adapter, tmp_path / "changed", **changes))
    assert caught.value.hint


def test_a_real_dora_adapter_is_read_with_its_magnitudes(
    exact_llama: Path, unpacked: Callable[[Path], Path], tmp_path: Path
) -> None:
    adapter = write_adapter(unpacked(exact_llama), tmp_path / "dora", use_dora=True)
    module = read_adapter(adapter).modules[QUERY]
    assert isinstance(module, LoraModule) and module.magnitude is not None
    saved = safetensors.torch.load_file(adapter / "adapter_model.safetensors")
    expected = saved["base_model.model.model.layers.0.self_attn.q_proj.lora_magnitude_vector"]
    assert torch.equal(torch.from_numpy(module.magnitude.array()), expected)
    with pytest.raises(InputError, match=r"has a DoRA magnitude, adapter_config\.json says use_dora=False"):
        read_adapter(_copy(adapter, tmp_path / "denied", use_dora=False))


def test_what_is_saved_whole_is_a_replacement_and_the_frozen_embedding_is_not(
    exact_llama: Path, unpacked: Callable[[Path], Path], tmp_path: Path
) -> None:
    modules = read_adapter(
        write_adapter(
            unpacked(exact_llama), tmp_path, target_modules=["q_proj", "embed_tokens"], modules_to_save=["norm"]
        )
    ).modules
    assert isinstance(modules["model.norm.weight"], Replacement)
    assert isinstance(modules["model.embed_tokens.weight"], EmbeddingLora)
    assert modules["model.embed_tokens.weight"].shape == (1024, 256)
    assert not any("base_layer" in name for name in modules)


def test_half_a_pair_is_refused(llama_adapter: Path, tmp_path: Path) -> None:
    broken = _copy(llama_adapter, tmp_path / "half")
    weights = safetensors.numpy.load_file(broken / "adapter_model.safetensors")
    del weights["base_model.model.model.layers.0.self_attn.q_proj.lora_B.weight"]
    safetensors.numpy.save_file(weights, broken / "adapter_model.safetensors")
    with pytest.raises(InputError, match=r"layers\.0\.self_attn\.q_proj has no matching pair"):
        read_adapter(broken)


def test_a_directory_that_is_no_adapter_is_refused(llama_adapter: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"is no adapter, it has no adapter_config\.json"):
        read_adapter(tmp_path)
    only_config = _copy(llama_adapter, tmp_path / "config")
    (only_config / "adapter_model.safetensors").unlink()
    with pytest.raises(InputError, match=r"has no adapter_model\.safetensors"):
        read_adapter(only_config)
    (only_config / "adapter_config.json").write_text("{")
    with pytest.raises(InputError, match="can't be read"):
        read_adapter(only_config)


@pytest.mark.parametrize("kept", [0, 7, 100, -100])
def test_truncated_weights_are_refused(kept: int, llama_adapter: Path, tmp_path: Path) -> None:
    broken = _copy(llama_adapter, tmp_path / "cut")
    data = (broken / "adapter_model.safetensors").read_bytes()
    (broken / "adapter_model.safetensors").write_bytes(data[:kept])
    with pytest.raises(InputError):
        read_adapter(broken)


def test_an_adapter_for_another_base_is_refused_by_module_and_shape(
    llama_adapter: Path, exact_gemma: Path, exact_llama: Path, unpacked: Callable[[Path], Path]
) -> None:
    adapter = read_adapter(llama_adapter)
    shapes = {name: tensor.shape for name, tensor in read_checkpoint(unpacked(exact_llama)).items()}
    check_adapter_fits(adapter, shapes)
    with pytest.raises(InputError, match=r"another base.*k_proj is \[64, 256\].*expects \[128, 256\]"):
        gemma = {name: tensor.shape for name, tensor in read_checkpoint(unpacked(exact_gemma)).items()}
        check_adapter_fits(adapter, gemma)
    with pytest.raises(InputError, match="q_proj, the base has no such module"):
        check_adapter_fits(adapter, {name: shape for name, shape in shapes.items() if name != QUERY})
