"""The assembly for a card, on the processor: it trains what the mapped base trains, bit for bit."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch

from amigo_local.domain.errors import Cancelled
from amigo_local.domain.events import AnyEvent, MetricLogged, Note
from amigo_local.domain.memory_plan import Batching, MemoryPlan, Part
from amigo_local.domain.units import GIB
from amigo_local.training.frozen_base import LoadedBase
from amigo_local.training.memory_formula import ASSUMED, Calibration
from amigo_local.training.nf4_store import open_store
from amigo_local.training.probe import Probing
from amigo_local.training.process import quiet_and_offline
from amigo_local.training.rehearsal import Peak
from tests.support.streamed_training import (
    HELD_OUT,
    LAYERS,
    LORA,
    ROWS,
    SETTINGS,
    STEPS,
    TinyModel,
    plan_for,
    stirred_adapter,
)
from tests.support.tiny_preferences import log_of

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
    log = log_of(tmp_path)
    assert [line["step"] for line in log if "eval_loss" in line] == [2, 4]
    assert log[-2]["loss"] < log[0]["loss"]
    assert files(tmp_path)["adapter_model.safetensors"] != (adapter / "adapter_model.safetensors").read_bytes()


def test_dpo_ends_with_the_same_files(gemma: TinyModel, adapter: Path, mapped_dpo: Path, tmp_path: Path) -> None:
    gemma.train(tmp_path, DPO, engine="now and then late", start_adapter=adapter)
    assert files(tmp_path) == files(mapped_dpo)


@pytest.mark.slow
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
        self._model, self.others = model, others
        self.peaks: list[int] = []

    def start(self) -> None: ...

    def settle(self) -> None: ...

    def peak(self) -> Peak:
        taken = self._model.streamers[-1].device_bytes + self.others
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
    """DPO scores its reference once, when the plan is settled: that takes a third of an epoch."""
    from amigo_local.training.preference_trainer import PreferenceTrainer

    layer_bytes = open_store(gemma.store).packs[0].nbytes
    card = Card(gemma, GIB)
    monkeypatch.setattr("amigo_local.training.rehearsal.ProcessMeter", lambda: card)
    scored: list[int] = []
    reference_of = PreferenceTrainer.reference_of

    def counted(self: Any, rows: Any, told: Any) -> Any:
        assert len(card.peaks) == 2, "scored before the probe"
        scored.extend(row.index for row in rows)
        return reference_of(self, rows, told)

    monkeypatch.setattr(PreferenceTrainer, "reference_of", counted)
    events: list[AnyEvent] = []
    before = len(gemma.streamers)
    # Four resident layers and two slots, where there is room for three in all.
    plan = probed_plan("gemma3", 4, GIB + 3 * layer_bytes)
    probing = Probing(replan=never, layer_bytes=layer_bytes)
    gemma.train(tmp_path, DPO, plan, engine="late", start_adapter=adapter, probing=probing, emit=events.append)
    resident = [len(streamer.resident) for streamer in gemma.streamers[before:]]
    assert resident == [4, 1, 1] and card.peaks == [GIB + 6 * layer_bytes, GIB + 3 * layer_bytes]
    assert all(streamer._closed for streamer in gemma.streamers[before:])
    told = [event.text for event in events if isinstance(event, Note) and event.text.startswith("plan corrected")]
    assert len(told) == 1 and told[0].endswith("over the budget: resident layers 4 → 1")
    assert len(scored) == ROWS + HELD_OUT
    assert files(tmp_path) == files(mapped_dpo)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["sft", "dpo"])
def test_a_probe_that_makes_the_micro_batch_smaller_ends_as_a_run_planned_so(
    method: str, gemma: TinyModel, adapter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """DPO's reference too, which is scored when the plan is settled."""
    settings = replace(DPO if method == "dpo" else FULL, max_steps=2)
    card = Card(gemma, 2 * GIB)
    monkeypatch.setattr("amigo_local.training.rehearsal.ProcessMeter", lambda: card)
    plan = replace(probed_plan("gemma3", 0, GIB), batching=Batching(micro_batch=5, accumulation=1))
    smaller = replace(plan, batching=Batching(micro_batch=2, accumulation=3))
    planned: list[Calibration] = []

    def replan(calibration: Calibration) -> MemoryPlan:
        planned.append(calibration)
        card.others = 0
        return smaller

    probing = Probing(replan=replan, layer_bytes=1 << 20)
    probed, from_start = tmp_path / "probed", tmp_path / "from start"
    gemma.train(probed, settings, plan, engine="late", start_adapter=adapter, probing=probing)
    gemma.train(from_start, settings, smaller, engine="late", start_adapter=adapter)
    assert len(planned) == 1 and planned[0].vram_factor > ASSUMED.vram_factor
    assert files(probed) == files(from_start)


# -- Every combination


CASES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "as it comes": ({}, {}),
    "no packing, nothing recomputed": ({"packing": False}, {"recompute": False}),
    "rsLoRA, one slot, nothing resident": (
        {"lora": replace(LORA, use_rslora=True)},
        {"slots": 1, "resident_layers": 0},
    ),
    "DoRA, four slots": ({"lora": replace(LORA, use_dora=True)}, {"slots": 4}),
    "noise, an MLP tile": ({"neftune_noise_alpha": 5.0}, {"mlp_tile_tokens": 30, "recompute": False}),
    "all resident": ({}, {"resident_layers": 99}),
    "8-bit optimizer, no dropout": ({"lora": replace(LORA, dropout=0.0)}, {"optimizer": "adamw_8bit"}),
}


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("method", ["sft", "dpo"])
@pytest.mark.parametrize("family", ["gemma3", "llama"])
def test_every_combination_ends_with_the_same_files(
    family: str, method: str, case: str, model: Callable[[str], TinyModel], tmp_path: Path
) -> None:
    tiny, (changes, levers) = model(family), CASES[case]
    settings = replace(SETTINGS, method=method, max_steps=3, checkpoint_every_steps=3, **changes)
    resident = min(levers.get("resident_layers", 1), LAYERS[family])
    plan = replace(plan_for(family, resident=resident), **{k: v for k, v in levers.items() if k != "resident_layers"})
    start = stirred_adapter(tiny, tmp_path / "adapter", settings.lora)
    for engine in (MAPPED, "late", "ring"):
        tiny.train(tmp_path / str(engine), settings, plan, engine=engine, start_adapter=start)
    assert files(tmp_path / "late") == files(tmp_path / "ring") == files(tmp_path / "None")
    assert len(tiny.streamers[-1].streamed) == LAYERS[family] - resident


@pytest.mark.slow
@pytest.mark.parametrize("family", ["gemma3", "llama"])
def test_memory_that_runs_out_in_a_backward_pass_costs_a_step_done_again(
    family: str, model: Callable[[str], TinyModel], tmp_path: Path
) -> None:
    """Slots and books are then those of a pass that was broken off; the rest is as if it had been planned smaller."""
    tiny = model(family)
    base, raised = tiny.base("late"), []

    def running_out(plan: MemoryPlan) -> LoadedBase:
        loaded = base.load(plan)

        def after(module: torch.nn.Module, args: Any, output: torch.Tensor) -> None:
            if output.requires_grad and output.shape[1] > 64:
                output.register_hook(refuse)

        def refuse(gradient: torch.Tensor) -> None:
            raised.append(gradient.shape)
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1.00 GiB.")

        loaded.model.model.layers[2].mlp.register_forward_hook(after)
        return loaded

    settings = replace(SETTINGS, packing=True)
    failing, smaller = tmp_path / "failing", tmp_path / "smaller"
    tiny.train(failing, settings, base=replace(base, load=running_out))
    assert len(raised) == 1 and raised[0][1] > 64
    tiny.train(smaller, settings, plan_for(family, batching=Batching(micro_batch=1, accumulation=5)), engine=MAPPED)
    assert files(failing) == files(smaller)


@pytest.mark.slow
@pytest.mark.parametrize("family", ["gemma3", "llama"])
def test_a_trained_adapter_generates_the_same_over_streamed_layers(
    family: str, model: Callable[[str], TinyModel], tmp_path: Path
) -> None:
    """With a cache, past gemma3's window of 32; evaluation passes follow one another, so copies go round in a ring."""
    from peft import PeftModel

    tiny, plan = model(family), plan_for(family)
    adapter = stirred_adapter(tiny, tmp_path / "adapter")
    ids = torch.randint(5, 1000, (2, 40), generator=torch.Generator().manual_seed(0))

    def generated(loaded: LoadedBase) -> tuple[torch.Tensor, torch.Tensor]:
        with quiet_and_offline():
            wrapped = PeftModel.from_pretrained(loaded.model, tmp_path / "adapter").eval()
            found = wrapped.generate(
                input_ids=ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=12,
                do_sample=False,
                use_cache=True,
                eos_token_id=None,
                return_dict_in_generate=True,
                output_logits=True,
            )
        if loaded.streamer is not None:
            loaded.streamer.close()
        return found.sequences, torch.stack(found.logits)

    assert adapter.is_dir()
    expected, logits = generated(tiny.base(MAPPED).load(plan))
    assert expected.shape == (2, 52)
    for engine in ("late", "ring, late"):
        found, streamed_logits = generated(tiny.base(engine).load(plan))
        assert torch.equal(found, expected) and torch.equal(streamed_logits, logits)
