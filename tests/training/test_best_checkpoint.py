"""Evaluating on held-out samples, and keeping the adapter that did best."""

from __future__ import annotations

import json
from pathlib import Path

import msgspec
import pytest
import torch

from amigo_local.domain.errors import Cancelled, InputError
from amigo_local.domain.events import AnyEvent, CheckpointSaved, MetricLogged, Progress
from amigo_local.domain.memory_plan import MemoryPlan
from amigo_local.domain.recipe import TrainSettings
from amigo_local.training.frozen_base import FrozenBase, LoadedBase, base_from_checkpoint
from amigo_local.training.sample_file import SampleFile
from amigo_local.training.sft import train_sft
from amigo_local.training.training_run import TrainingRun

from .conftest import PLAN, SETTINGS, STEPS, Train, files

EVALUATING = msgspec.structs.replace(SETTINGS, evaluate_every_steps=4)
KEEPING = msgspec.structs.replace(SETTINGS, evaluate_every_steps=2, keep_best=True, keep_checkpoints=1)


def evaluations(folder: Path) -> dict[int, float]:
    lines = [json.loads(line) for line in (folder / "training_log.jsonl").read_text().splitlines()]
    return {line["step"]: line["eval_loss"] for line in lines if "eval_loss" in line}


@pytest.fixture(scope="module")
def evaluated(train: Train, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("evaluated")
    train(out, EVALUATING)
    return out


def test_evaluating_changes_nothing_about_training(evaluated: Path, uninterrupted: Path) -> None:
    assert sorted(evaluations(evaluated)) == [4, 8, STEPS]  # the last step too
    with_them, without = files(evaluated), files(uninterrupted)
    lines = with_them.pop("training_log.jsonl").splitlines()
    assert [line for line in lines if b"eval_loss" not in line] == without.pop("training_log.jsonl").splitlines()
    assert with_them == without


def test_the_held_out_loss_is_the_mean_cross_entropy_per_completion_token(
    train: Train, tiny_base: Path, tiny_dataset: Path, tmp_path: Path
) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    settings = msgspec.structs.replace(EVALUATING, quantization="none", max_steps=3)
    figures, events = train(tmp_path, settings)
    model = AutoModelForCausalLM.from_pretrained(tiny_base, dtype=torch.float32)
    model = PeftModel.from_pretrained(model, tmp_path)
    terms = []
    for row in SampleFile(tiny_dataset / "held_out.jsonl", 512):
        ids = torch.tensor([row.sequences[0].input_ids])
        with torch.no_grad():
            logps = torch.log_softmax(model(input_ids=ids).logits[0, :-1].double(), dim=-1)
        terms.append(-logps.gather(1, ids[0, 1:, None])[row.sequences[0].completion_start - 1 :])
    assert figures["final_eval_loss"] == pytest.approx(float(torch.cat(terms).mean()), abs=1e-3)
    told = [e.values["eval_loss"] for e in events if isinstance(e, MetricLogged) and "eval_loss" in e.values]
    assert told == [figures["final_eval_loss"]] == list(evaluations(tmp_path).values())


def worse_after(good_evaluations: int, checkpoint: Path) -> FrozenBase:
    """A base whose later evaluations go badly, whatever was learnt; training itself is left alone."""
    plain = base_from_checkpoint(checkpoint, KEEPING, "tiny")
    evaluated = 0

    def spoil(module: torch.nn.Module, args: object, output: torch.Tensor) -> torch.Tensor | None:
        nonlocal evaluated
        if module.training:
            return None
        evaluated += 1
        # Six held-out samples are chunks of four and of two, and the first of them two micro-batches.
        return -output if evaluated > 3 * good_evaluations else None

    def load(plan: MemoryPlan) -> LoadedBase:
        model = plain.load(plan).model
        model.model.layers[1].register_forward_hook(spoil)
        return LoadedBase(model)

    return msgspec.structs.replace(plain, load=load)


def test_the_adapter_of_the_best_evaluation_is_written_and_outlives_rotation(
    tiny_base: Path, tiny_dataset: Path, tmp_path: Path
) -> None:
    saved: dict[int, dict[str, bytes]] = {}
    kept: list[str] = []

    def emit(event: AnyEvent) -> None:
        if isinstance(event, CheckpointSaved):
            saved[event.step] = files(Path(event.path))
            kept[:] = sorted(path.name for path in Path(event.path).parent.iterdir())

    figures = train_sft(TrainingRun(KEEPING, PLAN, worse_after(2, tiny_base), tiny_dataset, tmp_path, emit))
    losses = evaluations(tmp_path)
    best = min(losses, key=lambda step: losses[step])
    assert best == 4
    assert (figures["best_step"], figures["best_eval_loss"]) == (best, losses[best])
    assert (figures["first_eval_loss"], figures["final_eval_loss"]) == (losses[2], losses[STEPS])
    assert kept == [f"checkpoint-{STEPS}", f"checkpoint-{best}", "identity.json"]
    for name in ("adapter_model.safetensors", "adapter_config.json"):
        assert (tmp_path / name).read_bytes() == saved[best][name]
    assert saved[best]["adapter_model.safetensors"] != saved[STEPS]["adapter_model.safetensors"]
    assert not (tmp_path / "checkpoints").exists()


def cancelled(settings: TrainSettings, base: Path, dataset: Path, out: Path, when: object) -> list[AnyEvent]:
    events: list[AnyEvent] = []
    now = 0.0

    def clock() -> float:
        nonlocal now
        now += 2.0
        return now

    def emit(event: AnyEvent) -> None:
        events.append(event)
        if when(event):  # type: ignore[operator]
            raise Cancelled

    with pytest.raises(Cancelled):
        train_sft(
            TrainingRun(settings, PLAN, base_from_checkpoint(base, settings, "tiny"), dataset, out, emit, clock=clock)
        )
    return events


@pytest.mark.parametrize("where", ["before", "within", pytest.param("after", marks=pytest.mark.slow)])
def test_a_run_cut_around_an_evaluation_ends_with_the_same_bytes(
    where: str, train: Train, evaluated: Path, tiny_base: Path, tiny_dataset: Path, tmp_path: Path
) -> None:
    def when(event: AnyEvent) -> bool:
        if where == "within":
            return isinstance(event, Progress) and event.label == "evaluating"
        name = "loss" if where == "before" else "eval_loss"
        return isinstance(event, MetricLogged) and event.step == 4 and name in event.values

    cancelled(EVALUATING, tiny_base, tiny_dataset, tmp_path, when)
    assert (tmp_path / "checkpoints" / "checkpoint-4").is_dir()
    figures, events = train(tmp_path, EVALUATING)
    assert figures["resumed_after_step"] == 4
    told = [e.step for e in events if isinstance(e, MetricLogged) and "eval_loss" in e.values]
    assert told == ([8, STEPS] if where == "after" else [4, 8, STEPS])
    assert files(tmp_path) == files(evaluated)


def test_evaluating_needs_held_out_samples_and_keeping_the_best_needs_evaluating(
    train: Train, tiny_dataset: Path, tmp_path: Path
) -> None:
    (tmp_path / "train.jsonl").write_bytes((tiny_dataset / "train.jsonl").read_bytes())
    with pytest.raises(InputError, match=r"held_out\.jsonl holds nothing to evaluate on") as refused:
        train(tmp_path / "out", EVALUATING, dataset=tmp_path)
    assert "data.held_out_fraction" in refused.value.hint
    with pytest.raises(InputError, match=r"train\.evaluate_every_steps is not set"):
        train(tmp_path / "out", msgspec.structs.replace(SETTINGS, keep_best=True))
