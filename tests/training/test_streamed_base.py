"""The product's own assembly for a card, on the processor: what is trained is what the mapped base gives, bit for bit."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch

from amigo_local.domain.errors import Cancelled
from amigo_local.domain.events import AnyEvent, MetricLogged, Note
from amigo_local.domain.memory_plan import Batching, MemoryPlan, Part
from amigo_local.domain.recipe import TrainSettings
from amigo_local.domain.units import GIB
from amigo_local.training.frozen_base import LoadedBase
from amigo_local.training.memory_formula import Calibration
from amigo_local.training.probe import Probing
from amigo_local.training.process import quiet_and_offline
from amigo_local.training.rehearsal import Peak
from tests.support.streamed_training import LAYERS, LORA, SETTINGS, STEPS, TinyModel, plan_for, stirred_adapter

from .conftest import files

replace = msgspec.structs.replace
MAPPED = None


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], TinyModel]:
    made: dict[str, TinyModel] = {}

    def of(family: str) -> TinyModel:
        if family not in made:
            made[family] = TinyModel(tmp_path_factory.mktemp(family), family)
        return made[family]

    return of


@pytest.fixture(scope="session")
def gemma(model: Callable[[str], TinyModel]) -> TinyModel:
    return model("gemma3")


@pytest.fixture(scope="session")
def adapter(gemma: TinyModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return stirred_adapter(gemma, tmp_path_factory.mktemp("stirred") / "adapter")


# What comes together in a long run: packed rows, evaluations, a start adapter, noise, an MLP tile, recomputing.
FULL = replace(SETTINGS, neftune_noise_alpha=5.0)
TILED = plan_for("gemma3", mlp_tile_tokens=40)
DPO = replace(SETTINGS, method="dpo", max_steps=2, checkpoint_every_steps=2)


@pytest.fixture(scope="session")
def mapped_sft(gemma: TinyModel, adapter: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("mapped-sft")
    gemma.train(out, FULL, TILED, engine=MAPPED, start_adapter=adapter)
    return out


@pytest.fixture(scope="session")
def mapped_dpo(gemma: TinyModel, adapter: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("mapped-dpo")
    gemma.train(out, DPO, engine=MAPPED, start_adapter=adapter)
    return out


def test_sft_ends_with_the_same_files(gemma: TinyModel, adapter: Path, mapped_sft: Path, tmp_path: Path) -> None:
    gemma.train(tmp_path, FULL, TILED, engine="ring, late", start_adapter=adapter)
    assert set(files(tmp_path)) == {"adapter_config.json", "adapter_model.safetensors", "training_log.jsonl"}
    assert files(tmp_path) == files(mapped_sft)
    # Five of six layers came in turn: twice in each micro-batch, once more in each of an evaluation.
    traffic = gemma.streamers[-1].traffic()
    assert traffic.copies > 2 * 5 * STEPS * 2 and traffic.waited > 0
    # It did learn, and from where the start adapter was.
    log = [json.loads(line) for line in (tmp_path / "training_log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in log if "eval_loss" in line] == [2, 4]
    assert log[-2]["loss"] < log[0]["loss"]
    assert files(tmp_path)["adapter_model.safetensors"] != (adapter / "adapter_model.safetensors").read_bytes()


def test_dpo_ends_with_the_same_files(gemma: TinyModel, adapter: Path, mapped_dpo: Path, tmp_path: Path) -> None:
    gemma.train(tmp_path, DPO, engine="now and then late", start_adapter=adapter)
    assert files(tmp_path) == files(mapped_dpo)


def test_dora_starts_from_the_magnitudes_of_the_layers_own_weights(gemma: TinyModel, tmp_path: Path) -> None:
    """PEFT wraps the layers while the slots hold anything but them."""
    dora = replace(SETTINGS, max_steps=1, evaluate_every_steps=None, lora=replace(LORA, use_dora=True))
    for engine in (MAPPED, "late"):
        gemma.train(tmp_path / str(engine), dora, plan_for("gemma3", recompute=False), engine=engine)
    assert files(tmp_path / "late") == files(tmp_path / "None")


def test_cut_and_resumed_with_other_layers_resident_it_ends_with_the_same_files(
    gemma: TinyModel, adapter: Path, mapped_sft: Path, tmp_path: Path
) -> None:
    def cancel(event: AnyEvent) -> None:
        if isinstance(event, MetricLogged) and event.step == 3 and "loss" in event.values:
            raise Cancelled

    with pytest.raises(Cancelled):
        gemma.train(tmp_path, FULL, TILED, engine="late", start_adapter=adapter, emit=cancel)
    assert gemma.streamers[-1]._closed
    other = replace(TILED, resident_layers=4, streamed_layers=2, slots=1)
    figures = gemma.train(tmp_path, FULL, other, engine="ring", start_adapter=adapter)
    assert figures["resumed_after_step"] == 3
    assert files(tmp_path) == files(mapped_sft)


# -- The probe


class Card:
    """A meter of a card on which `others` lie beside the streamer's buffers, and everything that it was asked."""

    def __init__(self, model: TinyModel, others: int) -> None:
        self._model, self._others = model, others
        self.peaks: list[int] = []

    def start(self) -> None: ...

    def settle(self) -> None: ...

    def peak(self) -> Peak:
        taken = self._model.streamers[-1].device_bytes + self._others
        self.peaks.append(taken)
        return Peak(taken, taken, 0)


def never(calibration: Calibration) -> MemoryPlan:
    raise AssertionError("planned anew")


def probed_plan(family: str, resident: int, budget: int) -> MemoryPlan:
    """Long enough on a processor for a probe."""
    parts = (Part("process", budget),)
    return plan_for(family, resident=resident, ram=parts, ram_budget_bytes=budget, step_seconds=1000.0)


def test_a_probe_that_takes_layers_off_the_card_leaves_the_files_as_they_were(
    gemma: TinyModel, adapter: Path, mapped_dpo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """DPO has scored its reference when the plan changes: the file is taken as it is, not scored again."""
    layer = gemma.base(None).load(plan_for("gemma3")).model.model.layers
    layer_bytes = sum(p.nbytes for p in layer[0].parameters())  # a little less than its pack
    card = Card(gemma, GIB)
    monkeypatch.setattr("amigo_local.training.rehearsal.ProcessMeter", lambda: card)
    scored: list[int] = []
    original = "amigo_local.training.preference_trainer.PreferenceTrainer.reference_of"
    from amigo_local.training.preference_trainer import PreferenceTrainer

    reference_of = PreferenceTrainer.reference_of

    def counted(self: Any, rows: Any, told: Any) -> Any:
        scored.extend(row.index for row in rows)
        return reference_of(self, rows, told)

    monkeypatch.setattr(original, counted)
    events: list[AnyEvent] = []
    before = len(gemma.streamers)
    # Four resident layers and two slots, where there is room for three in all.
    plan = probed_plan("gemma3", 4, GIB + 3 * int(1.2 * layer_bytes))
    probing = Probing(replan=never, layer_bytes=int(1.2 * layer_bytes))
    gemma.train(tmp_path, DPO, plan, engine="late", start_adapter=adapter, probing=probing, emit=events.append)
    resident = [len(streamer.resident) for streamer in gemma.streamers[before:]]
    assert resident[0] == 4 and resident[-1] < 4 and len(card.peaks) == len(resident)
    assert card.peaks[-1] <= plan.ram_budget_bytes < card.peaks[0]
    assert all(streamer._closed for streamer in gemma.streamers[before:])
    told = [event.text for event in events if isinstance(event, Note) and event.text.startswith("plan corrected")]
    assert len(told) == len(resident) - 1 and "resident layers 4 → " in told[0]
    assert len(scored) == len(set(scored)) + 3 == 10 + 3  # indices of the held-out pairs count from 0 again
    assert files(tmp_path) == files(mapped_dpo)
