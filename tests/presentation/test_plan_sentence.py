"""A plan in sentences."""

from __future__ import annotations

import pytest

from amigo_local.domain.memory_plan import Batching, Lever, MemoryPlan
from amigo_local.domain.plan import Needs, Plan, PlannedStage
from amigo_local.domain.units import GIB
from amigo_local.presentation.plan_sentence import fit_sentence, lever_sentence, suggested_overrides, time_sentence


def stage(name: str, seconds: float | None, status: str = "to do") -> PlannedStage:
    return PlannedStage(stage=name, summary="", status=status, needs=Needs(seconds=seconds))  # type: ignore[arg-type]


def plan(resident: int, streamed: int, device: str = "cuda", **more: object) -> Plan:
    memory = MemoryPlan(
        device=device,  # type: ignore[arg-type]
        batching=Batching(micro_batch=1, accumulation=8),
        max_length_tokens=1024,
        optimizer="adamw_8bit",
        recompute=True,
        resident_layers=resident,
        streamed_layers=streamed,
    )
    return Plan(recipe="r", model="m", stages=(stage("train", 60),), memory=memory, **more)  # type: ignore[arg-type]


def test_whether_it_fits_is_said_with_where_the_layers_are() -> None:
    assert fit_sentence(plan(27, 21)) == "fits: streams 21 of 48 layers"
    assert fit_sentence(plan(48, 0)) == "fits: all 48 layers stay on the card"
    assert fit_sentence(plan(48, 0, "cpu")) == "fits: trains on the processor"
    assert fit_sentence(plan(27, 21, binding="RAM: needs 2, has 1")) == "doesn't fit: RAM: needs 2, has 1"
    done = Plan(recipe="r", model="m", stages=(stage("train", None, "done"),))
    assert fit_sentence(done) == "what it trains is made already"
    assert "once the model is there" in fit_sentence(Plan(recipe="r", model="m", stages=(stage("pull", None),)))


def test_time_counts_what_is_left_and_names_what_is_not_known() -> None:
    stages = (stage("prepare", 10, "done"), stage("train", 120), stage("register", None), stage("evaluate", None))
    assert time_sentence(Plan(recipe="r", model="m", stages=stages)) == "about 2 min 00 s, and what evaluate takes"
    assert time_sentence(Plan(recipe="r", model="m", stages=stages[:3])) == "about 2 min 00 s"
    assert time_sentence(Plan(recipe="r", model="m", stages=stages[:1])) == ""


@pytest.mark.parametrize(
    ("vram", "ram", "seconds", "says"),
    [
        (GIB, -2 * GIB, -0.3, "saves 1.0 GiB VRAM; costs 2.0 GiB RAM, 0.3 s a step"),
        (GIB, GIB, 0.01, "saves 1.0 GiB VRAM, 1.0 GiB RAM"),
        (0, 0, -2.0, "costs 2.0 s a step"),
        (0, 0, 0.0, ""),
    ],
)
def test_a_lever_says_what_it_saves_and_what_it_costs(vram: int, ram: int, seconds: float, says: str) -> None:
    lever = Lever(name="x", chosen="a", other="b", vram_saved_bytes=vram, ram_saved_bytes=ram, seconds_saved=seconds)
    assert lever_sentence(lever) == says


@pytest.mark.parametrize(
    ("hint", "found"),
    [
        ("--set data.max_length_tokens=1024 would fit (5.5 GiB); or --set train.x=1", ("data.max_length_tokens=1024",)),
        ("--set a.b=1 --set train.micro_batch=1 would fit (5 GiB)", ("a.b=1", "train.micro_batch=1")),
        ("quote it, --set 'data.sources=[{stdlib: all}]'", ()),
        ("--set train.lora.use_dora=false, or run the recipes", ("train.lora.use_dora=false",)),
        ("use a machine with more memory", ()),
    ],
)
def test_the_change_that_a_hint_names_first_is_found(hint: str, found: tuple[str, ...]) -> None:
    assert suggested_overrides(hint) == found
