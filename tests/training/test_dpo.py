"""DPO against unmodified TRL, and the reference as the adapter stood at the start."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch

from amigo_local.domain.events import AnyEvent, MetricLogged
from amigo_local.domain.memory_plan import MemoryPlan
from amigo_local.domain.plan import Batching
from amigo_local.domain.recipe import DpoSettings, TrainSettings
from amigo_local.training.frozen_base import LoadedBase, base_from_checkpoint
from tests.support.tiny_preferences import END, HELD_OUT, PAIRS, PLAN, SETTINGS, TinyDpo, changed, log_of, texts

from .conftest import files

REWARDS = ("rewards/chosen", "rewards/rejected", "rewards/margins", "rewards/accuracies")
COMPARED = (*REWARDS, "logps/chosen", "logps/rejected")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> TinyDpo:
    return TinyDpo(tmp_path_factory.mktemp("dpo"))


@pytest.fixture
def in_f32(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("amigo_local.training.base.multiplies_bf16", lambda: False)


@pytest.mark.parametrize("packing", [True, False])
def test_a_policy_that_has_not_moved_from_the_start_adapter_has_no_margin(
    tiny: TinyDpo, packing: bool, tmp_path: Path
) -> None:
    """With any other reference it has one: see the next test."""
    tiny.train(tmp_path, changed(max_steps=1, packing=packing, evaluate_every_steps=None))
    (first,) = log_of(tmp_path)
    assert first["loss"] == pytest.approx(math.log(2), abs=1e-7)
    assert [first[name] for name in REWARDS] == [0.0] * 4
    assert first["grad_norm"] > 0.01 and first["logps/chosen"] < -10


def test_against_the_bare_base_the_first_loss_would_be_another(tiny: TinyDpo, tmp_path: Path) -> None:
    one = changed(max_steps=1, evaluate_every_steps=None)
    (bare,), _ = trl_history(tiny, one, tmp_path, bare=True)
    (started,), _ = trl_history(tiny, one, tmp_path)
    assert abs(bare["loss"] - math.log(2)) > 0.01 and abs(bare["rewards/chosen"]) > 0.02
    assert started["loss"] == pytest.approx(math.log(2), abs=1e-6)


def trl_history(
    tiny: TinyDpo, settings: TrainSettings, out_dir: Path, *, bare: bool = False
) -> tuple[list[dict[str, float]], Any]:
    """The log of TRL's own trainer on the same pairs in the same order; `bare`: against the base without adapter."""
    from datasets import Dataset
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.trainer_callback import PrinterCallback
    from trl import DPOConfig, DPOTrainer

    from amigo_local.training.preferences import PreferenceFile
    from amigo_local.training.samples import training_order

    tokenizer = AutoTokenizer.from_pretrained(tiny.base)

    def row(prompt: str, chosen: str, rejected: str) -> dict[str, str]:
        chat = [{"role": "user", "content": prompt}]
        text = tokenizer.apply_chat_template(chat, add_generation_prompt=True, tokenize=False)
        return {"prompt": text, "chosen": chosen + END, "rejected": rejected + END}

    every = [row(*each) for each in texts(PAIRS + HELD_OUT)]
    order = training_order(PreferenceFile(tiny.dataset / "train.jsonl", 512).lengths, settings)
    base = AutoModelForCausalLM.from_pretrained(tiny.base, dtype=torch.float32)
    model = PeftModel.from_pretrained(base, tiny.adapter, is_trainable=True)
    trainer = DPOTrainer(
        model=model,
        args=DPOConfig(
            output_dir=str(out_dir),
            use_cpu=True,
            bf16=False,
            max_steps=settings.max_steps or -1,
            num_train_epochs=1,  # `order` is the whole run
            per_device_train_batch_size=settings.effective_batch,
            per_device_eval_batch_size=HELD_OUT,
            learning_rate=settings.learning_rate,
            lr_scheduler_type="constant",
            max_grad_norm=settings.max_grad_norm,
            optim="adamw_torch",
            train_sampling_strategy="sequential",
            beta=settings.dpo.beta,
            loss_type=["robust" if settings.dpo.label_smoothing else settings.dpo.loss],
            label_smoothing=settings.dpo.label_smoothing,
            max_length=None,
            activation_checkpointing=False,
            eval_strategy="steps" if settings.evaluate_every_steps else "no",
            eval_steps=settings.evaluate_every_steps,
            logging_steps=1,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
        ),
        train_dataset=Dataset.from_list([every[index] for index in order]),
        eval_dataset=Dataset.from_list(every[PAIRS:]),
        processing_class=tokenizer,
    )
    trainer.remove_callback(PrinterCallback)
    if bare:
        model.delete_adapter("ref")
    trainer.train()
    return [line for line in trainer.state.log_history if "loss" in line or "eval_loss" in line], model


def test_losses_rewards_and_evaluations_are_trl_s_own_with_its_reference_adapter(
    tiny: TinyDpo, in_f32: None, tmp_path: Path
) -> None:
    events: list[AnyEvent] = []
    settings = changed(quantization="none")
    figures = tiny.train(tmp_path / "ours", settings, emit=events.append)
    theirs, model = trl_history(tiny, settings, tmp_path / "trl")
    log = log_of(tmp_path / "ours")
    trained, evaluated = ([line for line in log if kind in line] for kind in ("loss", "eval_loss"))
    assert [line["step"] for line in trained] == [1, 2, 3, 4, 5]
    for ours, trl in zip(trained, (line for line in theirs if "loss" in line), strict=True):
        assert ours["loss"] == pytest.approx(trl["loss"], abs=2e-5)
        assert ours["grad_norm"] == pytest.approx(trl["grad_norm"], rel=1e-3)
        assert [ours[name] for name in COMPARED] == pytest.approx([trl[name] for name in COMPARED], abs=1e-3)
    assert trained[-1]["loss"] < 0.5 and trained[-1]["rewards/accuracies"] == 1  # else all steps might be alike

    assert [line["step"] for line in evaluated] == [2, 4, 5]
    of_trl = {line["step"]: line for line in theirs if "eval_loss" in line}
    for line in evaluated[:2]:
        trl = of_trl[line["step"]]
        assert line["eval_loss"] == pytest.approx(trl["eval_loss"], abs=2e-5)
        names = [f"eval_{name}" for name in COMPARED]
        assert [line[name] for name in names] == pytest.approx([trl[name] for name in names], abs=1e-3)
    assert figures["final_eval_loss"] == evaluated[2]["eval_loss"]
    told = [event.values for event in events if isinstance(event, MetricLogged)]
    assert all(("rewards/margins" in values) or ("eval_rewards/margins" in values) for values in told)

    from peft import get_peft_model_state_dict
    from safetensors.torch import load_file

    weights = load_file(tmp_path / "ours" / "adapter_model.safetensors")
    for name, tensor in get_peft_model_state_dict(model, save_embedding_layers=False).items():
        torch.testing.assert_close(weights[name], tensor.float(), rtol=0, atol=2e-4)


@pytest.mark.parametrize(
    "dpo",
    [
        {"label_smoothing": 0.1},
        pytest.param({"loss": "ipo"}, marks=pytest.mark.slow),
        pytest.param({"loss": "hinge"}, marks=pytest.mark.slow),
    ],
)
def test_every_loss_is_trl_s_of_that_name(dpo: dict[str, Any], tiny: TinyDpo, in_f32: None, tmp_path: Path) -> None:
    dpo_settings = DpoSettings(beta=0.2, **dpo)
    settings = changed(quantization="none", max_steps=2, dpo=dpo_settings, evaluate_every_steps=None)
    tiny.train(tmp_path / "ours", settings)
    ours = [line["loss"] for line in log_of(tmp_path / "ours")]
    theirs = [line["loss"] for line in trl_history(tiny, settings, tmp_path / "trl")[0]]
    assert ours == pytest.approx(theirs, rel=1e-4)
    assert ours[1] != pytest.approx(ours[0], rel=1e-3)


def test_neither_micro_batch_nor_packing_changes_a_step(tiny: TinyDpo, in_f32: None, tmp_path: Path) -> None:
    def run(micro: int, packing: bool) -> list[dict[str, float]]:
        plan = msgspec.structs.replace(PLAN, batching=Batching(micro_batch=micro, accumulation=1))
        out_dir = tmp_path / f"{micro} {packing}"
        tiny.train(out_dir, changed(max_steps=2, packing=packing), plan=plan)
        return log_of(out_dir)

    expected = run(1, False)
    assert len(expected) == 3  # the last is an evaluation
    for micro, packing in ((6, False), (6, True)):  # three pairs and one: unequal shares of a step
        for ours, line in zip(run(micro, packing), expected, strict=True):
            assert ours.keys() == line.keys()
            assert list(ours.values()) == pytest.approx(list(line.values()), rel=2e-4, abs=2e-4)


def test_without_a_start_adapter_the_reference_is_the_base(tiny: TinyDpo, tmp_path: Path) -> None:
    figures = tiny.train(tmp_path, changed(max_steps=2, evaluate_every_steps=None), start=False)
    first, second = log_of(tmp_path)
    assert first["loss"] == pytest.approx(math.log(2), abs=1e-7)
    assert second["rewards/margins"] != 0
    assert (figures["started_from"], figures["steps"], figures["samples"]) == (None, 2, PAIRS)


def test_layers_that_stream_give_the_bytes_of_resident_ones(tiny: TinyDpo, tmp_path: Path) -> None:
    """Through the reference pass, recomputing, and an evaluation in the middle."""
    from amigo_local.training.copy_engine import ThreadedEngine
    from amigo_local.training.layer_pack import pack_layer
    from amigo_local.training.layer_streaming import LayerStreamer

    base = base_from_checkpoint(tiny.base, SETTINGS, "tiny")
    engine = ThreadedEngine(late=1.0)

    def load(plan: MemoryPlan) -> LoadedBase:
        model = base.load(plan).model
        layers = model.model.layers
        return LoadedBase(
            model, LayerStreamer(layers, [*map(pack_layer, layers)], torch.device("cpu"), engine=engine, slots=1)
        )

    recompute = msgspec.structs.replace(PLAN, recompute=True)
    settings = changed(max_steps=3)
    tiny.train(tmp_path / "resident", settings)
    tiny.train(tmp_path / "streamed", settings, plan=recompute, base=msgspec.structs.replace(base, load=load))
    # Two layers through one slot: four copies a micro-batch, of which three steps have six, and two passes without.
    assert engine.traffic().copies > 24
    engine.close()
    assert files(tmp_path / "streamed") == files(tmp_path / "resident")
