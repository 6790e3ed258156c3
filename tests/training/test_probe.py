"""A probe corrects the plan by what it measures, and leaves no trace in what is trained."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch

from amigo_local.domain.errors import InputError
from amigo_local.domain.events import AnyEvent, Note, Table
from amigo_local.domain.memory_plan import Batching, MemoryPlan, Part
from amigo_local.domain.units import GIB, MIB
from amigo_local.training.copy_engine import Traffic
from amigo_local.training.memory_formula import ASSUMED, Calibration
from amigo_local.training.probe import PlanCorrector, calibrated, comparison, is_worth_it, predicted_seconds
from amigo_local.training.rehearsal import Measured, Peak, ProcessMeter, Rehearsal, rehearse, scratch_optimizer

from .conftest import PLAN, Train, files

LAYER = 110 * MIB
CONTEXT = 300 * MIB
BUDGET = 5600 * MIB
# 21 resident layers of 48; 2 slots; the rest works.
CARD = MemoryPlan(
    device="cuda",
    batching=Batching(micro_batch=2, accumulation=4),
    max_length_tokens=1024,
    optimizer="paged_adamw_8bit",
    recompute=True,
    resident_layers=21,
    streamed_layers=27,
    slots=2,
    vram=(Part("CUDA context", CONTEXT), Part("resident layers", 21 * LAYER), Part("the rest", 2700 * MIB)),
    vram_budget_bytes=BUDGET,
    step_seconds=80.0,
    tokens_per_second=102.4,
)


class SimulatedCard:
    """Takes what it takes: `fixed` beside layers, more or less than was planned, and runs out where it ends."""

    def __init__(self, working_mib: int, size: int = BUDGET) -> None:
        self.working, self.size = working_mib * MIB, size

    def rehearse(self, plan: MemoryPlan) -> Measured:
        working = self.working * plan.batching.micro_batch // 2
        tensors = (plan.resident_layers + plan.slots) * LAYER + working
        peak = Peak(tensors=tensors, reserved=int(1.01 * tensors), context=CONTEXT)
        out = "CUDA out of memory. Tried to allocate 1.00 GiB." if peak.needed > self.size else ""
        if out:  # it got as far as the card goes
            tensors = self.size - CONTEXT - 50 * MIB
            peak = Peak(tensors, tensors, CONTEXT)
        return Measured(tokens=plan.tokens_at_once, peak=peak, step_seconds=20.0, ran_out=out)


def smaller_micro_batch(plan: MemoryPlan) -> Callable[[Calibration], MemoryPlan]:
    """A planner with one lever left."""
    half = Batching(micro_batch=1, accumulation=8)
    return lambda calibration: msgspec.structs.replace(plan, batching=half, resident_layers=0, streamed_layers=48)


def never(calibration: Calibration) -> MemoryPlan:
    raise AssertionError("planned anew")


def settle(
    card: SimulatedCard, plan: MemoryPlan = CARD, replan: Callable[[Calibration], MemoryPlan] = never
) -> tuple[PlanCorrector, list[AnyEvent], int]:
    """As a stage does it: build, rehearse, build anew while the plan changes."""
    events: list[AnyEvent] = []
    corrector, rehearsals = PlanCorrector(plan, LAYER, replan, events.append), 0
    while not corrector.settled:
        rehearsals += 1
        assert rehearsals < 10
        corrector.judge(card.rehearse(corrector.plan))
    return corrector, events, rehearsals


def notes(events: list[AnyEvent]) -> list[str]:
    return [event.text for event in events if isinstance(event, Note)]


def test_a_plan_that_holds_is_left_alone_after_one_rehearsal() -> None:
    corrector, events, rehearsals = settle(SimulatedCard(working_mib=2650))
    assert (corrector.plan, rehearsals, notes(events)) == (CARD, 1, [])


def test_over_the_budget_just_so_many_layers_leave_the_card() -> None:
    """It needs 300 + 23 * 110 + 3000 = 5830 MiB of 5600: three layers too many."""
    corrector, events, rehearsals = settle(SimulatedCard(working_mib=3000, size=8 * GIB))
    assert (corrector.plan.resident_layers, corrector.plan.streamed_layers) == (18, 30)
    assert rehearsals == 2
    assert notes(events) == ["plan corrected, 230.0 MiB over the budget: resident layers 21 → 18"]


def test_room_to_spare_is_filled_with_layers_and_measured_once_more() -> None:
    """It needs 300 + 1.01 * (23 * 110 + 1500); 97 % of 5600 leaves room for nine layers."""
    corrector, events, rehearsals = settle(SimulatedCard(working_mib=1500))
    assert (corrector.plan.resident_layers, corrector.plan.streamed_layers) == (30, 18)
    assert rehearsals == 2
    assert notes(events) == ["plan corrected, there is room to spare: resident layers 21 → 30"]
    # The corrected plan's prediction is what was measured and nine layers more.
    assert corrector.plan.peak_vram_bytes == CONTEXT + int(1.01 * (23 * LAYER + 1500 * MIB)) + 9 * LAYER


def test_with_all_layers_resident_the_slots_go_too() -> None:
    large = msgspec.structs.replace(CARD, vram_budget_bytes=9 * GIB)
    corrector, _, _ = settle(SimulatedCard(working_mib=500, size=9 * GIB), large)
    assert (corrector.plan.resident_layers, corrector.plan.streamed_layers, corrector.plan.slots) == (48, 0, 0)


def test_layers_that_turn_out_too_many_are_taken_back_without_another_rehearsal() -> None:
    class Treacherous(SimulatedCard):
        def rehearse(self, plan: MemoryPlan) -> Measured:
            self.size = BUDGET if plan.resident_layers <= 21 else 4 * GIB  # something else took memory meanwhile
            return super().rehearse(plan)

    corrector, events, rehearsals = settle(Treacherous(working_mib=1200))
    assert corrector.plan == CARD
    assert rehearsals == 2
    assert notes(events)[-1].startswith("plan corrected, that was too much after all: resident layers ")


def test_running_out_of_memory_costs_a_tenth_of_the_budget_in_layers_and_is_tried_again() -> None:
    corrector, events, rehearsals = settle(SimulatedCard(working_mib=3300))
    assert corrector.plan.resident_layers == 15  # 560 MiB are six layers; 300 + 17 * 110 + 3300 fit
    assert rehearsals == 2
    assert notes(events) == ["plan corrected, memory ran out: resident layers 21 → 15"]


def test_without_layers_to_take_away_the_planner_chooses_with_what_was_measured() -> None:
    plan = msgspec.structs.replace(CARD, resident_layers=0, streamed_layers=48, vram=CARD.vram[::2])
    seen: list[Calibration] = []

    def replan(calibration: Calibration) -> MemoryPlan:
        seen.append(calibration)
        return smaller_micro_batch(plan)(calibration)

    corrector, events, _ = settle(SimulatedCard(working_mib=6000, size=8 * GIB), plan, replan)
    assert corrector.plan.batching == Batching(micro_batch=1, accumulation=8)
    # 1.01 * 6220 MiB beside the context, where 2700 were planned.
    assert seen[0].vram_factor == pytest.approx(ASSUMED.vram_factor * 1.01 * 6220 / 2700, rel=1e-6)
    assert seen[0].context_bytes == CONTEXT
    assert "micro-batch 2 → 1" in notes(events)[0]


def test_when_nothing_smaller_is_left_it_is_refused_with_what_binds() -> None:
    plan = msgspec.structs.replace(CARD, resident_layers=0, streamed_layers=48)
    with pytest.raises(InputError, match=r"VRAM binds: .* over the budget of 5.5 GiB in the probe") as caught:
        settle(SimulatedCard(working_mib=6000, size=8 * GIB), plan, lambda calibration: plan)
    assert "data.max_length_tokens=512" in caught.value.hint


def test_corrections_that_never_suffice_end() -> None:
    def replan(calibration: Calibration) -> MemoryPlan:
        tiles.append(tiles[-1] // 2)
        return msgspec.structs.replace(CARD, resident_layers=0, streamed_layers=48, head_tile_rows=tiles[-1])

    tiles = [8192]
    with pytest.raises(InputError, match=r"memory ran out of 5\.5 GiB in the probe"):
        settle(SimulatedCard(working_mib=9000), replan=replan)
    assert len(tiles) < 7


def test_on_a_processor_too_little_ram_is_a_warning_where_the_planner_knows_nothing_better() -> None:
    events: list[AnyEvent] = []
    plan = msgspec.structs.replace(PLAN, ram=(Part("process", GIB),), ram_budget_bytes=GIB)
    corrector = PlanCorrector(plan, 0, lambda calibration: plan, events.append)
    assert corrector.judge(Measured(tokens=192, peak=Peak(2 * GIB, 2 * GIB, 0)))
    assert corrector.settled
    assert [event.text for event in events if isinstance(event, Note) and event.level == "warning"] == [
        "RAM: 1.0 GiB over the budget of 1.0 GiB in the probe"
    ]


def test_speed_is_calibrated_without_the_time_that_copies_were_waited_for() -> None:
    traffic = Traffic(copies=96, nbytes=12 * 10**9, waited=9, seconds_copying=2.0, seconds_waited=1.0)
    peak = Peak(CARD.peak_vram_bytes - CONTEXT, CARD.peak_vram_bytes - CONTEXT, CONTEXT)
    measured = Measured(tokens=2048, peak=peak, step_seconds=41.0, traffic=traffic)
    assert predicted_seconds(CARD, 2048) == 20.0  # four micro-batches of 2 x 1024 in 80 s
    found = calibrated(ASSUMED, CARD, measured)
    assert found.flops == pytest.approx(ASSUMED.flops / 2)
    assert found.bytes_per_second == pytest.approx(6e9)
    assert found.vram_factor == pytest.approx(ASSUMED.vram_factor)


def test_predicted_and_measured_are_told_side_by_side() -> None:
    traffic = Traffic(copies=96, nbytes=11 * 10**9, waited=9, seconds_copying=1.0, seconds_waited=0.1)
    peak = Peak(tensors=4000 * MIB, reserved=4200 * MIB, context=CONTEXT)
    measured = Measured(tokens=2048, peak=peak, step_seconds=22.0, evaluation_seconds=7.0, traffic=traffic)
    told = comparison(CARD, measured)
    assert isinstance(told, Table)
    assert told.rows == (
        ("peak VRAM", "5.2 GiB", "4.4 GiB", "-15 %"),
        ("of it tensors", "", "3.9 GiB", ""),
        ("of it context", "", "300.0 MiB", ""),
        ("budget", "", "5.5 GiB", ""),
        ("2048 tokens at once", "20 s", "22 s", "+10 %"),
        ("an evaluation's", "", "7.0 s", ""),
        ("to the card", "", "11.0 GB/s", ""),
        ("copies hidden", "100%", "90%", ""),
    )


@pytest.mark.parametrize(("plan", "steps", "worth_it"), [(CARD, 1, True), (PLAN, 10**6, False)])
def test_it_is_worth_it_on_a_card_and_for_long_runs(plan: MemoryPlan, steps: int, worth_it: bool) -> None:
    assert is_worth_it(plan, steps) == worth_it
    assert is_worth_it(msgspec.structs.replace(PLAN, step_seconds=6.0), 101)
    assert not is_worth_it(msgspec.structs.replace(PLAN, step_seconds=6.0), 100)


def tiny_model() -> torch.nn.Module:
    torch.manual_seed(3)
    model = torch.nn.Sequential(torch.nn.Linear(64, 128), torch.nn.Dropout(0.5), torch.nn.Linear(128, 1))
    model[0].bias.requires_grad_(False)
    return model.eval()


class Recorder:
    """A meter that remembers when it was asked."""

    def __init__(self, *happened: str) -> None:
        self.happened = list(happened)

    def start(self) -> None:
        self.happened.append("start")

    def settle(self) -> None:
        self.happened.append("settle")

    def peak(self) -> Peak:
        self.happened.append("peak")
        return Peak(1, 2, 3)


@pytest.mark.parametrize("optimizer", ["adamw_torch", "adamw_8bit", "paged_adamw_8bit"])
@pytest.mark.parametrize("fails", [False, True])
def test_after_a_rehearsal_everything_is_bit_for_bit_as_before(optimizer: Any, fails: bool) -> None:
    model, meter = tiny_model(), Recorder()
    model[2].weight.grad = given = torch.full((1, 128), 7.0)
    trained = [p for p in model.parameters() if p.requires_grad]
    before = [p.detach().clone() for p in model.parameters()], torch.get_rng_state()
    during: list[torch.Tensor] = []
    forgotten: list[None] = []

    def run_step() -> None:
        if fails and during:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1.00 GiB.\nmore")
        assert model.training
        assert all(p.grad is None for p in trained)
        model(torch.randn(8, 64)).square().sum().backward()
        during.append(model[0].weight.detach().clone())

    measured = rehearse(
        Rehearsal(
            model=model,
            tokens=64,
            run_step=run_step,
            evaluate=lambda: during.append(model(torch.ones(8, 64))),
            make_optimizer=lambda parameters: scratch_optimizer(optimizer, parameters),
            forget_pass=lambda: forgotten.append(None),
        ),
        meter,
        clock=iter(range(100)).__next__,
    )
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), before[0], strict=True))
    assert torch.equal(torch.get_rng_state(), before[1])
    assert not model.training
    assert model[2].weight.grad is given and torch.equal(given, torch.full((1, 128), 7.0))
    assert model[0].weight.grad is None
    if fails:
        assert measured.ran_out == "CUDA out of memory. Tried to allocate 1.00 GiB."
        assert (measured.step_seconds, len(forgotten)) == (0.0, 1)
        assert meter.happened == ["start", "settle", "peak", "start"]
    else:
        assert not torch.equal(during[0], during[1])  # the scratch optimizer did step
        assert not during[2].requires_grad
        assert (measured.step_seconds, measured.evaluation_seconds, forgotten) == (1, 1, [])
        assert meter.happened == ["start", "settle", "settle", "settle", "peak", "start"]


def test_whatever_else_is_raised_comes_out_and_everything_is_put_back() -> None:
    model = tiny_model()
    before = [p.detach().clone() for p in model.parameters()]

    def run_step() -> None:
        model(torch.randn(8, 64)).sum().backward()

    def evaluate() -> None:
        raise ValueError("broken")

    with pytest.raises(ValueError, match="broken"):
        rehearse(
            Rehearsal(model=model, tokens=1, run_step=run_step, evaluate=evaluate, make_optimizer=torch.optim.AdamW),
            Recorder(),
        )
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), before, strict=True))


def test_the_optimizers_state_lies_beside_the_second_steps_gradients() -> None:
    held: list[int] = []
    made: list[torch.optim.Optimizer] = []
    model = torch.nn.Linear(128, 128, bias=False)

    def run_step() -> None:
        model(torch.ones(1, 128)).sum().backward()
        held.append(sum(s.nbytes for state in made[0].state.values() for s in state.values()))

    def make(parameters: list[torch.nn.Parameter]) -> torch.optim.Optimizer:
        made.append(scratch_optimizer("adamw_torch", parameters))
        return made[0]

    rehearse(Rehearsal(model=model, tokens=1, run_step=run_step, evaluate=None, make_optimizer=make), Recorder())
    assert held[0] == 0
    assert held[1] >= 2 * model.weight.nbytes


def test_a_run_with_a_probe_ends_with_the_bytes_of_one_without(
    train: Train, uninterrupted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Real LoRA on a real tiny model with dropout, where a trace in weights, moments or generators would show."""
    from amigo_local.training import sft, training_run
    from amigo_local.training.probe_callback import ProbeCallback

    probed: list[AnyEvent] = []
    plan = msgspec.structs.replace(PLAN, ram_budget_bytes=64 * GIB, step_seconds=1.0)
    corrector = PlanCorrector(plan, 0, never, probed.append)

    def before(trainer: Any) -> None:
        trainer.add_callback(ProbeCallback(trainer, corrector, ProcessMeter()))

    monkeypatch.setattr(sft, "train", lambda *parts: training_run.train(*parts, before=before))
    train(tmp_path, plan=plan)
    assert files(tmp_path) == files(uninterrupted)
    assert corrector.settled
    (table,) = probed
    assert isinstance(table, Table)
    # Two samples of at most 96 tokens go through at once; the heaviest two of the run are packed into 160 to 192.
    assert table.rows[2][0] in ("160 tokens at once", "192 tokens at once")
