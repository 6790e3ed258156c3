"""Memory running out: known by what CUDA says, and the step done again in smaller micro-batches, as if planned so."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch

from amigo_local.domain.errors import AmigoError, Cancelled
from amigo_local.domain.events import AnyEvent, MetricLogged, Note
from amigo_local.domain.memory_plan import MemoryPlan
from amigo_local.domain.recipe import TrainSettings
from amigo_local.training.checkpointed_trainer import PLAN as PLAN_FILE
from amigo_local.training.checkpointed_trainer import PlanInForce
from amigo_local.training.copy_engine import Traffic
from amigo_local.training.frozen_base import FrozenBase, LoadedBase, base_from_checkpoint
from amigo_local.training.out_of_memory import is_out_of_memory
from amigo_local.training.sample_file import SampleFile
from amigo_local.training.samples import training_order
from amigo_local.training.sft import train_sft
from amigo_local.training.training_run import TrainingRun

from .conftest import PLAN, SETTINGS, WITHOUT_DROPOUT, Train, files

SHORT = msgspec.structs.replace(SETTINGS, max_steps=6)
EVALUATING = msgspec.structs.replace(WITHOUT_DROPOUT, max_steps=3, evaluate_every_steps=2)


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("Allocation on device 0 would exceed allowed memory."),
        RuntimeError("CUDA error: out of memory\nCUDA kernel errors might be asynchronously reported"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        RuntimeError("CUDA error: CUBLAS_STATUS_NOT_INITIALIZED when calling `cublasCreate(handle)`"),
    ],
)
def test_every_way_of_running_out_is_known(error: RuntimeError) -> None:
    assert is_out_of_memory(error)


def test_other_failures_are_not_taken_for_it() -> None:
    assert not is_out_of_memory(RuntimeError("CUDA error: an illegal memory access was encountered"))


class Gauge:
    """A memory that takes `most_tokens` at once, from the nth step on; raises where an allocator would."""

    def __init__(self, most_tokens: int, from_step: int = 1, backward: bool = False, mode: str = "train") -> None:
        self.most, self.from_step, self.backward, self.mode = most_tokens, from_step, backward, mode
        self.step = 1
        self.resets = self.raised = 0

    def seen(self, event: AnyEvent) -> None:
        if isinstance(event, MetricLogged) and "loss" in event.values:
            self.step = event.step + 1

    def base(self, checkpoint: Path, settings: TrainSettings) -> FrozenBase:
        plain = base_from_checkpoint(checkpoint, settings, "tiny")

        def load(plan: MemoryPlan) -> LoadedBase:
            model = plain.load(plan).model
            model.model.layers[1].mlp.register_forward_hook(self._hook)
            return LoadedBase(model, self)

        return msgspec.structs.replace(plain, load=load)

    def _hook(self, module: Any, args: Any, output: torch.Tensor) -> None:
        wanted = module.training == (self.mode == "train") and self.step >= self.from_step
        if not wanted or output.shape[0] * output.shape[1] <= self.most:
            return
        if self.backward:
            output.register_hook(self._refuse)
        else:
            self._refuse()

    def _refuse(self, gradient: torch.Tensor | None = None) -> None:
        self.raised += 1
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1.00 GiB.\nGPU 0 has …")

    def reset(self) -> None:
        self.resets += 1

    def initialise_magnitudes(self) -> None: ...

    def traffic(self) -> Traffic:
        return Traffic()

    def close(self) -> None: ...


def run(gauge: Gauge, base: Path, dataset: Path, out: Path, settings: TrainSettings = SHORT) -> list[AnyEvent]:
    events: list[AnyEvent] = []

    def emit(event: AnyEvent) -> None:
        gauge.seen(event)
        events.append(event)

    train_sft(TrainingRun(settings, PLAN, gauge.base(base, settings), dataset, out, emit))
    return events


@pytest.fixture(scope="module")
def smaller_from_step_4(
    tiny_base: Path, tiny_dataset: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, bytes]:
    """Files of a run whose capacity is set to 96 tokens when step 4 begins, and that never lacks memory."""
    from transformers import TrainerCallback

    from amigo_local.training import adapter_trainer

    class Smaller(TrainerCallback):  # type: ignore[misc]
        def __init__(self, trainer: Any) -> None:
            self.trainer = trainer

        def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.global_step == 3:
                self.trainer.capacity_tokens = 96

    class Planned(adapter_trainer.AdapterTrainer):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            self.add_callback(Smaller(self))

    out = tmp_path_factory.mktemp("smaller")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(adapter_trainer, "AdapterTrainer", Planned)
        base = base_from_checkpoint(tiny_base, SHORT, "tiny")
        train_sft(TrainingRun(SHORT, PLAN, base, tiny_dataset, out, lambda event: None))
    return files(out)


@pytest.mark.parametrize("backward", [False, True])
def test_the_step_is_done_again_as_if_the_smaller_size_had_been_planned(
    backward: bool,
    tiny_base: Path,
    tiny_dataset: Path,
    smaller_from_step_4: dict[str, bytes],
    tmp_path: Path,
) -> None:
    gauge = Gauge(most_tokens=96, from_step=4, backward=backward)
    events = run(gauge, tiny_base, tiny_dataset, tmp_path)
    assert files(tmp_path) == smaller_from_step_4
    told = [e.text for e in events if isinstance(e, Note)]
    assert told == ["out of memory with 192 tokens at once: step 4 is done again with at most 96"]
    assert gauge.resets == gauge.raised == 1


def test_a_resumed_run_starts_with_the_size_that_held(
    train: Train, tiny_base: Path, tiny_dataset: Path, smaller_from_step_4: dict[str, bytes], tmp_path: Path
) -> None:
    gauge = Gauge(most_tokens=96, from_step=4)

    def emit(event: AnyEvent) -> None:
        gauge.seen(event)
        if gauge.step == 6:
            raise Cancelled

    with pytest.raises(Cancelled):
        train_sft(TrainingRun(SHORT, PLAN, gauge.base(tiny_base, SHORT), tiny_dataset, tmp_path, emit))
    stored = (tmp_path / "checkpoints" / "checkpoint-5" / PLAN_FILE).read_bytes()
    assert msgspec.json.decode(stored, type=PlanInForce) == PlanInForce(capacity_tokens=96, plan=PLAN)
    figures, events = train(tmp_path, SHORT)  # with all the memory in the world
    assert figures["tokens_at_once"] == 96
    assert files(tmp_path) == smaller_from_step_4
    assert not [e for e in events if isinstance(e, Note) and "memory" in e.text]


def test_running_out_in_an_evaluation_changes_neither_its_result_nor_training(
    train: Train, tiny_base: Path, tiny_dataset: Path, tmp_path: Path
) -> None:
    gauge = Gauge(most_tokens=96, mode="eval")
    events = run(gauge, tiny_base, tiny_dataset, tmp_path / "short", EVALUATING)
    _, expected = train(tmp_path / "ample", EVALUATING)
    assert gauge.raised == gauge.resets == 1
    assert "the evaluation is done again with at most 96" in next(e.text for e in events if isinstance(e, Note))
    for name in ("eval_loss", "loss"):
        found, wanted = (
            [e.values[name] for e in told if isinstance(e, MetricLogged) and name in e.values]
            for told in (events, expected)
        )
        assert found == pytest.approx(wanted, rel=2e-4)  # bf16 sums in another order


def test_a_single_sample_that_does_not_fit_is_named(tiny_base: Path, tiny_dataset: Path, tmp_path: Path) -> None:
    with pytest.raises(AmigoError) as failed:
        run(Gauge(most_tokens=64, from_step=3), tiny_base, tiny_dataset, tmp_path)
    assert "out of memory on a single sample, of 67 tokens" in failed.value.message
    assert "Tried to allocate 1.00 GiB" in failed.value.message
    line = int(failed.value.message.split("train.jsonl:")[1].split(")")[0])
    row = msgspec.json.decode((tiny_dataset / "train.jsonl").read_bytes().splitlines()[line - 1])
    assert len(row["input_ids"]) == 67
    assert "data.max_length_tokens" in failed.value.hint
    order = training_order(SampleFile(tiny_dataset / "train.jsonl", 512).lengths, SETTINGS)
    steps_done = order.index(line - 1, 2 * SETTINGS.effective_batch) // SETTINGS.effective_batch
    assert (tmp_path / "checkpoints" / f"checkpoint-{steps_done}").is_dir()  # nothing that was learnt is lost


def test_what_other_errors_say_passes_through(tiny_base: Path, tiny_dataset: Path, tmp_path: Path) -> None:
    class Broken(Gauge):
        def _refuse(self, gradient: torch.Tensor | None = None) -> None:
            raise RuntimeError("something else")

    with pytest.raises(RuntimeError, match="something else"):
        run(Broken(most_tokens=96), tiny_base, tiny_dataset, tmp_path)
