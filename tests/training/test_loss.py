"""The loss that is trained on, against cross-entropy written out by hand."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest
import torch

from amigo_local.domain.events import MetricLogged
from amigo_local.domain.memory_plan import Batching
from amigo_local.training.sample_file import SampleFile
from amigo_local.training.samples import training_order

from .conftest import PLAN, SETTINGS, WITHOUT_DROPOUT, Train


def first_loss(events: list) -> float:
    return next(e.values["loss"] for e in events if isinstance(e, MetricLogged))


def losses_by_hand(base: Path, dataset: Path, batch: int) -> tuple[float, float]:
    """Mean -log p over the first step's completion tokens, and over all of its tokens, in f32.

    A fresh LoRA adds nothing, so it is the NF4 base's own loss.
    """
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    nf4 = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.float32,
    )
    model = AutoModelForCausalLM.from_pretrained(base, quantization_config=nf4, dtype=torch.float32, device_map="cpu")
    model.train()  # bitsandbytes repacks at eval forwards
    rows = SampleFile(dataset / "train.jsonl", vocabulary=512)
    order = training_order(rows.lengths, SETTINGS)
    completion, everything = [], []
    for index in order[:batch]:
        (sample,) = rows[index].sequences
        ids, start = sample.input_ids, sample.completion_start
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([ids])).logits[0]
        for position in range(1, len(ids)):
            term = -torch.log_softmax(logits[position - 1].double(), dim=-1)[ids[position]].item()
            everything.append(term)
            if position >= start:
                completion.append(term)
    return sum(completion) / len(completion), sum(everything) / len(everything)


@pytest.mark.parametrize("packing", [True, False])
def test_the_first_loss_is_the_mean_cross_entropy_of_the_completions(
    packing: bool, train: Train, tiny_base: Path, tiny_dataset: Path, tmp_path: Path
) -> None:
    one_step = msgspec.structs.replace(WITHOUT_DROPOUT, max_steps=1, packing=packing)
    _, events = train(tmp_path, one_step)
    masked, unmasked = losses_by_hand(tiny_base, tiny_dataset, SETTINGS.effective_batch)
    assert abs(masked - unmasked) > 0.005  # else this proves nothing
    assert first_loss(events) == pytest.approx(masked, abs=1e-3)


def test_neither_packing_nor_the_micro_batch_changes_what_a_step_learns(train: Train, tmp_path: Path) -> None:
    settings = msgspec.structs.replace(WITHOUT_DROPOUT, max_steps=2)
    told = []
    for packing, micro in ((False, 1), (False, 4), (True, 2), (True, 4)):
        plan = msgspec.structs.replace(PLAN, batching=Batching(micro_batch=micro, accumulation=4 // micro))
        settings = msgspec.structs.replace(settings, packing=packing)
        _, events = train(tmp_path / f"{packing}{micro}", settings, plan)
        told.append([(e.values["loss"], e.values["grad_norm"]) for e in events if isinstance(e, MetricLogged)])
    for steps in told[1:]:
        for (loss, norm), (loss_1, norm_1) in zip(steps, told[0], strict=True):
            assert loss == pytest.approx(loss_1, rel=1e-3)  # bf16 sums in another order
            assert norm == pytest.approx(norm_1, rel=2e-2)


def test_training_lowers_the_loss_and_lora_stays_in_f32(uninterrupted: Path) -> None:
    import json

    from safetensors.torch import load_file

    log = [json.loads(line)["loss"] for line in (uninterrupted / "training_log.jsonl").read_text().splitlines()]
    assert sum(log[-3:]) / 3 < sum(log[:3]) / 3 - 0.05
    weights = load_file(uninterrupted / "adapter_model.safetensors")
    assert len(weights) == 2 * 7 * 2  # A and B, seven linears, two layers
    assert {tensor.dtype for tensor in weights.values()} == {torch.float32}
    assert all(tensor.abs().max() > 0 for name, tensor in weights.items() if "lora_B" in name)


def test_peft_loads_the_adapter_and_it_carries_no_path_of_this_machine(uninterrupted: Path, tiny_base: Path) -> None:
    import json

    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    config = json.loads((uninterrupted / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "tiny"
    assert (config["r"], config["lora_alpha"], config["peft_type"]) == (4, 8, "LORA")
    assert str(tiny_base.parent) not in (uninterrupted / "adapter_config.json").read_text()

    base = AutoModelForCausalLM.from_pretrained(tiny_base, dtype=torch.float32)
    ids = torch.arange(40)[None]
    with torch.no_grad():
        before = base(input_ids=ids).logits
        after = PeftModel.from_pretrained(base, uninterrupted)(input_ids=ids).logits
    assert (before - after).abs().max() > 0.05
