"""Our head behind `fused_lm_head=True`, against TRL's own, in models and in TRL's trainers."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import pytest
import torch

from amigo_local.domain.errors import InputError
from amigo_local.training.fused_lm_head import DPO_STATISTICS, SFT_STATISTICS, DeviceHead, attach_fused_lm_head
from amigo_local.training.logit_rule import LogitRule
from amigo_local.training.tiled_head import Statistic, token_statistics
from tests.support.host_model import load, move_to_host, round_to
from tests.support.quantized_model import lora, write_tiny_gemma
from tests.support.storage_watch import StorageWatch
from tests.support.tiny_checkpoint import pairs
from tests.support.tiny_families import write_family

IDS = torch.tensor([[3, 1, 4, 1, 5, 9, 2, 6], [0, 383, 0, 7, 7, 7, 200, 1]])
LABELS = torch.tensor([[-100, -100, 4, 1, 5, 9, 2, 6], [-100, 383, 0, 7, -100, -100, 200, -100]])
EVERYTHING: tuple[Statistic, ...] = ("entropy", "log_sum_sq_probs", "mean_logits", "is_top1")


@pytest.fixture(scope="module")
def gemma(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_gemma(tmp_path_factory.mktemp("gemma"))


@pytest.fixture(scope="module")
def family(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("families")
    return lambda name: load(write_family(folder / name, name, tie_word_embeddings=True))


def adapted(model: Any) -> Any:
    from peft import get_peft_model

    torch.manual_seed(0)
    model = get_peft_model(model, lora(dropout=0.0))
    for parameter in model.parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter, std=0.05)
    return model


def gradients(model: Any) -> dict[str, torch.Tensor]:
    return {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        *(("llama", "labels"), ("gemma3", "labels"), ("gemma2", "labels")),
        *(("gemma2", "shift_labels"), ("gemma3", "num_items_in_batch"), ("llama", "on the device")),
        *(("gemma2", "logit_scale"), ("llama", "logits_scaling")),
    ],
)
def test_the_answer_is_that_of_trls_fused_head(family: Any, name: str, shape: str) -> None:
    """gemma2 caps its logits. The scales are read off the config, whatever the model's own forward does of them."""
    from trl.trainer.utils import add_fused_lm_head

    asked: dict[str, Any] = {"input_ids": IDS, "labels": LABELS}
    if shape == "shift_labels":
        asked = {"input_ids": IDS, "shift_labels": LABELS}
    elif shape == "num_items_in_batch":
        asked["num_items_in_batch"] = torch.tensor(20)
    answers, caches = [], []
    for attach in (attach_fused_lm_head, add_fused_lm_head):
        model = adapted(family(name))
        if shape.startswith("logit"):
            setattr(model.config.get_text_config(), shape, 0.7)
        if attach is add_fused_lm_head:
            add_fused_lm_head(model.get_base_model(), outputs=("log_probs", *EVERYTHING))
        else:
            if shape != "on the device":
                move_to_host(model.get_base_model(), "F32")
            attach_fused_lm_head(model, EVERYTHING)
        model.get_base_model().base_model.register_forward_hook(lambda *seen: caches.append(seen[-1].past_key_values))
        answer = model(**asked, fused_lm_head=True)
        answer.loss.backward()
        answers.append((answer, gradients(model)))
    assert caches == [None, None]
    (ours, our_gradients), (theirs, their_gradients) = answers
    assert type(ours) is type(theirs)
    assert set(ours) == set(theirs) and ours.aux_loss is None
    for field in theirs:
        torch.testing.assert_close(ours[field], theirs[field], rtol=1e-4, atol=1e-5)
    assert len(our_gradients) == len(their_gradients) > 0
    for parameter, gradient in their_gradients.items():
        torch.testing.assert_close(our_gradients[parameter], gradient, rtol=1e-3, atol=1e-6)


def test_a_head_of_several_tiles_on_the_device_is_that_of_its_whole_weight() -> None:
    linear, hidden, targets = torch.nn.Linear(8, 20_000, bias=False), torch.randn(6, 8), torch.arange(0, 20_000, 3500)
    found = token_statistics(hidden, targets, DeviceHead(linear), LogitRule()).log_probs
    expected = linear(hidden).log_softmax(-1).gather(1, targets[:, None])[:, 0]
    torch.testing.assert_close(found, expected.detach())


def test_other_calls_go_on_to_the_models_own_forward(family: Any) -> None:
    model, untouched = family("gemma2"), family("gemma2")
    attach_fused_lm_head(model)
    assert torch.equal(model(input_ids=IDS, labels=IDS).loss, untouched(input_ids=IDS, labels=IDS).loss)
    assert torch.equal(
        model.generate(IDS, max_new_tokens=3, do_sample=False),
        untouched.generate(IDS, max_new_tokens=3, do_sample=False),
    )
    assert "input_ids" in inspect.signature(model.forward).parameters


def test_a_batch_without_labels_gives_a_zero_that_can_be_differentiated(family: Any) -> None:
    model = adapted(family("llama"))
    attach_fused_lm_head(model, EVERYTHING)
    answer = model(input_ids=IDS, labels=torch.full_like(IDS, -100), fused_lm_head=True)
    answer.loss.backward()
    assert answer.loss == 0
    assert all(gradient.abs().sum() == 0 for gradient in gradients(model).values())
    assert len(gradients(model)) > 0


def test_heads_that_are_more_than_a_frozen_matrix_are_refused(family: Any) -> None:
    from peft import LoraConfig, get_peft_model

    trained = family("llama")
    trained.lm_head.weight.requires_grad_(True)
    biased = family("llama")
    biased.lm_head = torch.nn.Linear(64, 384).requires_grad_(False)
    adapted_head = get_peft_model(family("llama"), LoraConfig(target_modules=["lm_head"], task_type="CAUSAL_LM"))
    for model in (trained, biased, adapted_head):
        with pytest.raises(InputError, match="needs a frozen linear head without a bias"):
            attach_fused_lm_head(model)
    experts = family("llama")
    experts.config.output_router_logits = True
    with pytest.raises(InputError, match="router"):
        attach_fused_lm_head(experts)


ROWS = [(f"<|im_start|>user\n{request}<|im_end|>\n", f"{answer[:60]}<|im_end|>") for request, answer in pairs(8)]


def arguments(folder: Path) -> dict[str, Any]:
    return {
        "output_dir": str(folder),
        "use_cpu": True,
        "bf16": False,
        "report_to": "none",
        "learning_rate": 1e-3,
        "max_steps": 2,
        "per_device_train_batch_size": 2,
        "per_device_eval_batch_size": 2,
        "logging_steps": 1,
        "eval_strategy": "steps",
        "eval_steps": 2,
        "save_strategy": "no",
        "disable_tqdm": True,
        "max_length": 96,
    }


def make_trainer(method: str, model: Any, tokenizer: Any, folder: Path) -> Any:
    import trl
    from datasets import Dataset

    rows = [
        {"prompt": prompt, "completion": answer}
        if method == "SFT"
        else {"prompt": prompt, "chosen": answer, "rejected": f"No. {answer[-25:]}"}
        for prompt, answer in ROWS
    ]
    return getattr(trl, f"{method}Trainer")(
        model=model,
        args=getattr(trl, f"{method}Config")(**arguments(folder)),
        train_dataset=Dataset.from_list(rows[:4]),
        eval_dataset=Dataset.from_list(rows[4:]),
        processing_class=tokenizer,
    )


@pytest.mark.parametrize(("method", "statistics"), [("SFT", SFT_STATISTICS), ("DPO", DPO_STATISTICS)])
def test_trls_trainers_train_and_evaluate_through_it_as_through_their_own(
    gemma: Path, tmp_path: Path, method: str, statistics: tuple[Statistic, ...]
) -> None:
    """Unmodified, but that the head is attached after __init__; the table is on the host in Q8_0."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(gemma, local_files_only=True)
    logs, adapters, largest = [], [], []
    scored: list[int] = []
    for ours in (True, False):
        model = load(gemma)
        if ours:
            table = move_to_host(model, "Q8_0")
        else:
            round_to(model, table)
        trainer = make_trainer(method, adapted(model), tokenizer, tmp_path)
        if ours:
            attach_fused_lm_head(trainer.model, statistics, logits_at_once=16 * 100)
            trainer.model.get_base_model().register_forward_hook(
                lambda _, args, output: scored.append(int(output.label_mask.sum()))
            )
        with StorageWatch(*trainer.model.parameters(), table.raw) as watch:
            trainer.train()
        logs.append(trainer.state.log_history)
        adapters.append({n: p.detach() for n, p in trainer.model.named_parameters() if p.requires_grad})
        largest.append(watch.largest_elements)
    assert largest[0] < min(scored) * 512
    assert largest[1] > max(scored) * 512  # TRL's buffer holds them all: the watch would have seen it
    for our_log, their_log in zip(*logs, strict=True):
        assert our_log.keys() == their_log.keys()
        for name, value in their_log.items():
            if not name.endswith(("runtime", "per_second")):
                assert our_log[name] == pytest.approx(value, rel=1e-3, abs=1e-4), name
    assert {"entropy", "mean_token_accuracy", "eval_loss"} <= set().union(*logs[0])
    for name, weight in adapters[1].items():
        torch.testing.assert_close(adapters[0][name], weight, rtol=1e-3, atol=2e-5)
