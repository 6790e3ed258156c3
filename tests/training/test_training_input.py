"""What can't be trained is refused by name, and training says nothing on stdout."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from amigo_local.domain.errors import InputError
from amigo_local.domain.memory_plan import MemoryPlan
from amigo_local.domain.recipe import LoraSettings
from amigo_local.training.frozen_base import FrozenBase, LoadedBase, base_from_checkpoint
from amigo_local.training.sft import train_sft
from amigo_local.training.training_run import TrainingRun

from .conftest import PLAN, SETTINGS, STEPS, Train, files

ONE_STEP = msgspec.structs.replace(SETTINGS, max_steps=1)


def test_a_folder_without_config_is_no_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no checkpoint: it has no config\.json") as refused:
        base_from_checkpoint(tmp_path, SETTINGS)
    assert "unpack" in refused.value.hint


def test_a_config_without_a_vocabulary_is_refused(tmp_path: Path) -> None:
    for content, complaint in (("{}", "has no vocab_size"), ("{", "is no JSON")):
        (tmp_path / "config.json").write_text(content)
        with pytest.raises(InputError, match=complaint):
            base_from_checkpoint(tmp_path, SETTINGS)


def test_nothing_to_train_on_is_told_before_the_base_is_loaded(tiny_dataset: Path, tmp_path: Path) -> None:
    def load(plan: MemoryPlan) -> LoadedBase:
        raise AssertionError("loaded")

    base = FrozenBase(name="", where=tmp_path, digest="", vocabulary=512, load=load)
    short = msgspec.structs.replace(PLAN, max_length_tokens=20)
    with pytest.raises(InputError, match="20 samples are longer than 20 tokens") as refused:
        train_sft(TrainingRun(SETTINGS, short, base, tiny_dataset, tmp_path / "out", lambda event: None))
    assert "data.max_length_tokens" in refused.value.hint
    assert not (tmp_path / "out").exists()


def test_an_unknown_lora_target_is_refused_with_the_names_there_are(train: Train, tmp_path: Path) -> None:
    settings = msgspec.structs.replace(ONE_STEP, lora=LoraSettings(rank=4, targets=("q_proj", "w_qkv")))
    with pytest.raises(InputError, match="w_qkv names no linear layer") as refused:
        train(tmp_path, settings)
    assert "down_proj, gate_proj, k_proj" in refused.value.hint


def test_unquantized_lora_on_some_linears_trains_too(train: Train, tmp_path: Path) -> None:
    from safetensors.torch import load_file

    settings = msgspec.structs.replace(
        ONE_STEP, quantization="none", lora=LoraSettings(rank=4, targets=("q_proj", "v_proj"))
    )
    figures, _ = train(tmp_path, settings)
    weights = load_file(tmp_path / "adapter_model.safetensors")
    assert sorted({name.split(".")[-3] for name in weights}) == ["q_proj", "v_proj"]
    assert figures["steps"] == 1


def test_recomputing_activations_gives_the_same_adapter(
    train: Train, uninterrupted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers.models.llama.modeling_llama import LlamaMLP

    forwards = []
    original = LlamaMLP.forward
    monkeypatch.setattr(LlamaMLP, "forward", lambda *args: forwards.append(1) or original(*args))
    train(tmp_path, plan=msgspec.structs.replace(PLAN, recompute=True))
    assert files(tmp_path) == files(uninterrupted)
    assert len(forwards) == 2 * (2 * 2 * STEPS)  # each layer of each micro-batch of each step, twice


def test_processors_without_bf16_train_in_f32(
    train: Train, uninterrupted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import json

    monkeypatch.setattr("amigo_local.training.base.multiplies_bf16", lambda: False)
    train(tmp_path)
    in_f32, in_bf16 = (
        [json.loads(line)["loss"] for line in (folder / "training_log.jsonl").read_text().splitlines()]
        for folder in (tmp_path, uninterrupted)
    )
    assert in_f32[0] == pytest.approx(in_bf16[0], abs=2e-3)
    assert in_f32[-1] == pytest.approx(in_bf16[-1], abs=0.05)


def test_training_prints_nothing(train: Train, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    train(tmp_path, ONE_STEP)
    assert capfd.readouterr().out == ""


def test_weights_are_never_repacked_for_inference(tiny_base: Path) -> None:
    """bitsandbytes does so at an eval forward on CPUs with AVX512-BF16; gradients would be wrong afterwards."""
    import torch

    from amigo_local.training.base import load_base

    model = load_base(tiny_base, SETTINGS, torch.device("cpu"))
    linear = model.model.layers[0].mlp.up_proj
    before = linear.weight.data.clone()
    with torch.no_grad():
        model.eval()(input_ids=torch.arange(8)[None])
    assert type(linear).__name__ == "Linear4bit"
    assert torch.equal(linear.weight.data, before)
    assert not getattr(linear.weight.quant_state, "packing_format_for_cpu", False)
    assert linear.weight.quant_state.nested  # double quantization


def test_the_environment_is_set_before_torch_reads_it() -> None:
    import os
    import subprocess
    import sys

    code = (
        "import sys, os; from amigo_local.training.process import prepare_process\n"
        "assert 'torch' not in sys.modules\n"
        "count = prepare_process(); import torch\n"
        "print(count, torch.get_num_threads(), os.environ['HF_HUB_DISABLE_TELEMETRY'], os.environ['GOMP_SPINCOUNT'])"
    )
    root = Path(__file__).resolve().parents[2]
    kept = {name: value for name, value in os.environ.items() if name != "GOMP_SPINCOUNT"}
    environment = {**kept, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(root)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=60)
    assert done.stdout.split() == ["1", "1", "1", "3000"], done.stderr
