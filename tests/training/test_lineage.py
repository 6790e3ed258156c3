"""A training that starts from the adapter of another one."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import msgspec
import pytest
import torch

from amigo_local.domain.errors import InputError
from amigo_local.domain.events import MetricLogged
from amigo_local.training.sample_file import SampleFile
from amigo_local.training.samples import file_digest, training_order

from .conftest import SETTINGS, WITHOUT_DROPOUT, Train

ONE_STEP = msgspec.structs.replace(WITHOUT_DROPOUT, max_steps=1)


def loss_with_peft(base: Path, adapter: Path, dataset: Path) -> float:
    """Of the first step's completions, by PEFT and transformers alone, on the unquantized base in f32."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    model = PeftModel.from_pretrained(model, adapter)
    rows = SampleFile(dataset / "train.jsonl", 512)
    terms = []
    for index in training_order(rows.lengths, ONE_STEP)[: ONE_STEP.effective_batch]:
        (sample,) = rows[index].sequences
        ids = torch.tensor([sample.input_ids])
        with torch.no_grad():
            logps = torch.log_softmax(model(input_ids=ids).logits[0, :-1].double(), dim=-1)
        terms.append(-logps.gather(1, ids[0, 1:, None])[sample.completion_start - 1 :])
    return float(torch.cat(terms).mean())


def test_the_first_step_sees_the_adapter_it_started_from(
    train: Train, uninterrupted: Path, tiny_base: Path, tiny_dataset: Path, tmp_path: Path
) -> None:
    plain = msgspec.structs.replace(ONE_STEP, quantization="none")
    figures, events = train(tmp_path / "started", plain, start_adapter=uninterrupted)
    first = next(e.values["loss"] for e in events if isinstance(e, MetricLogged))
    assert first == pytest.approx(loss_with_peft(tiny_base, uninterrupted, tiny_dataset), abs=2e-3)
    fresh, _ = train(tmp_path / "fresh", plain)
    assert first < fresh["first_loss"] - 0.05
    assert figures["started_from"] == file_digest(uninterrupted / "adapter_model.safetensors")
    assert fresh["started_from"] is None
    config = (tmp_path / "started" / "adapter_config.json").read_bytes()
    assert config == (tmp_path / "fresh" / "adapter_config.json").read_bytes()


@pytest.mark.parametrize(
    ("changed", "complaint"),
    [
        ({"base_model_name_or_path": "gemma"}, "of another base: it has gemma, the base is tiny"),
        ({"r": 16}, "of another rank: it has 16, train.lora.rank is 4"),
        ({"lora_alpha": 32}, "of another alpha: it has 32, train.lora.alpha is 8"),
        ({"use_rslora": True}, "of another use_rslora: it has True, train.lora.use_rslora is False"),
        ({"use_dora": True}, "of another use_dora: it has True"),
    ],
)
def test_an_adapter_of_another_base_or_shape_is_refused(
    changed: dict[str, object], complaint: str, train: Train, uninterrupted: Path, tmp_path: Path
) -> None:
    shutil.copytree(uninterrupted, tmp_path / "adapter")
    file = tmp_path / "adapter" / "adapter_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **changed}))
    with pytest.raises(InputError, match=complaint):
        train(tmp_path / "out", ONE_STEP, start_adapter=tmp_path / "adapter")


def test_an_adapter_on_other_linears_is_refused_by_name(
    train: Train, uninterrupted: Path, tiny_base: Path, tmp_path: Path
) -> None:
    attention = msgspec.structs.replace(ONE_STEP.lora, targets=("q_proj", "v_proj"))
    with pytest.raises(InputError) as refused:
        train(tmp_path / "out", msgspec.structs.replace(ONE_STEP, lora=attention), start_adapter=uninterrupted)
    assert refused.value.message.endswith(
        "of another targets: it has down_proj, gate_proj, k_proj, o_proj, q_proj, up_proj, v_proj, "
        "train.lora.targets is q_proj, v_proj"
    )
    every = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")  # all-linear spelt out
    same = msgspec.structs.replace(ONE_STEP, lora=msgspec.structs.replace(ONE_STEP.lora, targets=every))
    train(tmp_path / "same", same, start_adapter=uninterrupted)


def test_a_truncated_adapter_is_refused(train: Train, uninterrupted: Path, tmp_path: Path) -> None:
    import os

    shutil.copytree(uninterrupted, tmp_path / "adapter")
    os.truncate(tmp_path / "adapter" / "adapter_model.safetensors", 1000)
    with pytest.raises(InputError, match=r"adapter_model\.safetensors can't be read"):
        train(tmp_path / "out", ONE_STEP, start_adapter=tmp_path / "adapter")


def test_a_folder_without_an_adapter_is_refused(train: Train, uninterrupted: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"holds no adapter: it has no adapter_config\.json"):
        train(tmp_path / "out", ONE_STEP, start_adapter=tmp_path)
    shutil.copyfile(uninterrupted / "adapter_config.json", tmp_path / "adapter_config.json")
    with pytest.raises(InputError, match=r"holds no adapter: it has no adapter_model\.safetensors"):
        train(tmp_path / "out", ONE_STEP, start_adapter=tmp_path)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("name", "tensors"), [("use_rslora", 28), ("use_dora", 42)])
def test_rslora_and_dora_train_and_say_so(name: str, tensors: int, train: Train, tmp_path: Path) -> None:
    from safetensors.torch import load_file

    lora = msgspec.structs.replace(SETTINGS.lora, **{name: True})
    settings = msgspec.structs.replace(SETTINGS, max_steps=1, lora=lora)
    train(tmp_path, settings)
    assert json.loads((tmp_path / "adapter_config.json").read_text())[name] is True
    weights = load_file(tmp_path / "adapter_model.safetensors")
    assert len(weights) == tensors and {weight.dtype for weight in weights.values()} == {torch.float32}
    train(tmp_path / "next", settings, start_adapter=tmp_path)
