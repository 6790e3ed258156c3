"""Plans, pinned: what fits a laptop, what each lever buys, and what is said where nothing fits."""

from __future__ import annotations

import time

import msgspec
import pytest

from amigo_local.domain.errors import InputError
from amigo_local.domain.machine import Machine
from amigo_local.domain.memory_plan import Batching, MemoryPlan
from amigo_local.domain.recipe import LoraSettings, MemorySettings, TrainSettings
from amigo_local.domain.units import MIB
from amigo_local.stages._shapes import named_shape
from amigo_local.training import cpu_plan
from amigo_local.training.fit import budget
from amigo_local.training.memory_formula import ASSUMED, Job, Levers
from amigo_local.training.memory_plan import choose_plan, fitted, needs
from amigo_local.training.memory_refusal import refusal
from amigo_local.training.working_set import head_tile_bytes
from tests.support.planning import GEMMA_3_12B, LLAMA_3_1_8B, SMOLLM2_135M, machine

pytestmark = pytest.mark.usefixtures("garbage_of_others_stays")

SETTINGS = TrainSettings()  # rank 32, effective batch 8
RANK_16 = TrainSettings(lora=LoraSettings(rank=16, alpha=32))
LAPTOP = machine(vram_gib=6)


def plan(name: str, length: int, **settings: object) -> MemoryPlan:
    return choose_plan(named_shape(name), msgspec.structs.replace(SETTINGS, **settings), length, LAPTOP)


# Assumed of the card: 350 MiB of context, 6 % of slack, 12 TFLOPS, 11 GB/s. Nothing here is measured.
@pytest.mark.parametrize(
    ("name", "length", "micro_batch", "resident", "offload", "vram_mib", "ram_mib", "tokens_per_second"),
    [
        ("gemma-3-12b", 512, 1, 30, False, 5645, 5634, 143),
        ("gemma-3-12b", 1024, 1, 27, False, 5643, 5965, 153),
        ("gemma-3-12b", 2048, 1, 21, False, 5647, 6627, 153),
        ("gemma-3-12b", 4096, 1, 8, False, 5662, 8060, 143),
        ("gemma-3-12b", 8192, 1, 6, True, 5634, 11353, 122),
        ("gemma-3-4b", 2048, 1, 34, False, 3414, 3213, 482),
        ("gemma-3-4b", 8192, 1, 22, False, 5673, 3770, 379),
        ("gemma-3-1b", 2048, 1, 26, False, 1344, 2963, 1894),
        ("llama-3.1-8b", 2048, 1, 28, False, 5635, 4031, 236),
        ("llama-3.1-8b", 8192, 1, 16, True, 5612, 7367, 187),
        ("qwen3-8b", 2048, 1, 31, False, 5622, 4234, 233),
        ("mistral-7b-v0.3", 2048, 1, 28, False, 5635, 3419, 241),
    ],
)
def test_what_fits_6_gib_and_16_gib(
    name: str,
    length: int,
    micro_batch: int,
    resident: int,
    offload: bool,
    vram_mib: int,
    ram_mib: int,
    tokens_per_second: int,
) -> None:
    found = plan(name, length)
    assert found.batching == Batching(micro_batch=micro_batch, accumulation=8 // micro_batch)
    assert (found.resident_layers, found.offload_checkpoints) == (resident, offload)
    assert found.peak_vram_bytes / MIB == pytest.approx(vram_mib, abs=1)
    assert found.peak_ram_bytes / MIB == pytest.approx(ram_mib, abs=1)
    assert found.tokens_per_second == pytest.approx(tokens_per_second, abs=1)
    assert found.peak_vram_bytes <= found.vram_budget_bytes == budget(LAPTOP, "VRAM")
    assert found.peak_ram_bytes <= found.ram_budget_bytes
    assert found.streamed_layers == named_shape(name).layers - resident
    assert found.slots == min(2, found.streamed_layers)
    assert (found.optimizer, found.recompute, found.staging) == ("paged_adamw_8bit", True, "ring")


def test_a_plan_is_made_in_less_than_50_milliseconds_whether_it_fits_or_not() -> None:
    for shape, length in ((GEMMA_3_12B, 512), (GEMMA_3_12B, 8192), (named_shape("gemma-3-27b"), 4096)):
        job = Job(shape, TrainSettings(effective_batch=64), length, "Q6_K")
        fitted(job, LAPTOP)
        start = time.process_time()
        fitted(job, LAPTOP)
        assert time.process_time() - start < 0.05


@pytest.mark.parametrize("name", ["gemma-3-12b", "llama-3.1-8b"])
@pytest.mark.parametrize("method", ["sft", "dpo"])
def test_longer_samples_and_higher_ranks_never_take_less(name: str, method: str) -> None:
    fixed = MemorySettings(resident_layers=0, offload_checkpoints=False)
    card = machine(vram_gib=80, ram_gib=64)

    def peak(length: int, rank: int) -> int:
        settings = TrainSettings(method=method, micro_batch=1, lora=LoraSettings(rank=rank), memory=fixed)
        return choose_plan(named_shape(name), settings, length, card).peak_vram_bytes

    lengths = [peak(length, 32) for length in (128, 256, 512, 1024, 2048, 4096)]
    assert lengths == sorted(lengths) and len(set(lengths)) == len(lengths)
    ranks = [peak(512, rank) for rank in (8, 16, 32, 64)]
    assert ranks == sorted(ranks) and len(set(ranks)) == len(ranks)


def test_dpo_takes_two_sequences_for_a_sample() -> None:
    fixed = MemorySettings(resident_layers=0, offload_checkpoints=False)
    sft = plan("gemma-3-12b", 1024, micro_batch=2, memory=fixed)
    dpo = plan("gemma-3-12b", 512, micro_batch=1, method="dpo", memory=fixed)
    assert dpo.step_seconds is not None and sft.step_seconds is not None
    one = plan("gemma-3-12b", 1024, micro_batch=1, method="dpo", memory=fixed)
    assert one.peak_vram_bytes == pytest.approx(sft.peak_vram_bytes, rel=1e-3)
    assert one.step_seconds == pytest.approx(2 * sft.step_seconds, rel=0.01)


def test_every_lever_says_what_it_buys() -> None:
    found = {lever.name: lever for lever in plan("gemma-3-12b", 2048).levers}
    assert set(found) == {
        "train.micro_batch",
        "train.memory.resident_layers",
        "activation checkpointing",
        "train.memory.offload_checkpoints",
        "train.memory.mlp_tile_tokens",
        "train.optimizer",
        "train.memory.head_tile_rows",
    }
    layers = found["train.memory.resident_layers"]
    assert (layers.chosen, layers.other) == ("21 of 48", "48 of 48")
    # 27 layers of 110.3 MiB less two slots, with 6 % of slack.
    assert layers.vram_saved_bytes / MIB == pytest.approx(1.06 * (27 - 2) * 110.27, abs=1)
    assert layers.ram_saved_bytes / MIB == pytest.approx(-27 * 110.27, abs=1)
    offload = found["train.memory.offload_checkpoints"]
    assert (offload.chosen, offload.other) == ("off", "on")
    assert offload.seconds_saved > 0 > offload.vram_saved_bytes
    assert offload.ram_saved_bytes == 48 * 16 * MIB  # 2048 x 3840 bf16 are 15 MiB, pinned blocks powers of two
    head = found["train.memory.head_tile_rows"]
    assert head.vram_saved_bytes / MIB > 1.06 * 1920  # the bf16 head, and logits of 2 GiB in f32 besides
    assert found["train.optimizer"].vram_saved_bytes > 900 * MIB
    assert found["activation checkpointing"].seconds_saved < 0


def test_levers_that_are_fixed_are_kept() -> None:
    memory = MemorySettings(
        resident_layers=5, slots=3, offload_checkpoints=True, staging="pinned", head_tile_rows=1024, mlp_tile_tokens=256
    )
    found = plan("gemma-3-12b", 1024, micro_batch=2, optimizer="adamw_8bit", memory=memory)
    assert (found.resident_layers, found.slots, found.offload_checkpoints, found.staging) == (5, 3, True, "pinned")
    assert (found.head_tile_rows, found.mlp_tile_tokens, found.optimizer) == (1024, 256, "adamw_8bit")
    assert found.batching == Batching(micro_batch=2, accumulation=4)


def test_impossible_levers_are_refused() -> None:
    with pytest.raises(InputError, match=r"train\.memory\.resident_layers is 60, the model has 48 layers") as refused:
        plan("gemma-3-12b", 1024, memory=MemorySettings(resident_layers=60))
    assert refused.value.hint == "use 0 to 48, or leave it out: the plan keeps as many as fit"
    with pytest.raises(InputError, match="only NF4 layers stream"):
        plan("gemma-3-1b", 1024, quantization="none", memory=MemorySettings(resident_layers=3))
    with pytest.raises(InputError, match=r"train\.micro_batch is 3, which does not divide") as refused:
        plan("gemma-3-12b", 1024, micro_batch=3)
    assert refused.value.hint == "use one of: 1, 2, 4, 8"


@pytest.mark.parametrize(
    ("settings", "length", "vram", "ram", "message", "hint"),
    [
        (SETTINGS, 8192, 3, 16, "VRAM: training needs", "--set data.max_length_tokens=4096 would fit (2.8 GiB VRAM"),
        (
            SETTINGS,
            1024,
            6,
            6,
            "RAM: training needs",
            "--set data.max_length_tokens=512 would fit (5.6 GiB VRAM and 5.5 GiB RAM); or",
        ),
        (SETTINGS, 4096, 2, 16, "VRAM: training needs", "--set train.lora.rank=16 --set data.max_length_tokens=2048"),
        (
            TrainSettings(memory=MemorySettings(resident_layers=48)),
            1024,
            6,
            16,
            "VRAM: training needs",
            "--set train.memory.resident_layers=null would fit (5.5 GiB VRAM and 5.8 GiB RAM)",
        ),
        (TrainSettings(micro_batch=8), 2048, 6, 16, "VRAM: training needs", "--set train.micro_batch=1 would fit"),
        (
            TrainSettings(optimizer="adamw_torch", lora=LoraSettings(rank=64)),
            1024,
            6,
            16,
            "VRAM: training needs",
            "--set train.optimizer=auto would fit",
        ),
        (
            SETTINGS,
            1024,
            1,
            16,
            "VRAM: training needs",
            "no shorter length or lower rank fits this card: take a rented GPU with 8 GiB",
        ),
    ],
)
def test_a_refusal_names_what_binds_and_the_nearest_recipe_that_fits(
    settings: TrainSettings, length: int, vram: float, ram: float, message: str, hint: str
) -> None:
    with pytest.raises(InputError) as refused:
        choose_plan(GEMMA_3_12B, settings, length, machine(vram_gib=vram, ram_gib=ram))
    assert refused.value.message.startswith(message), refused.value.message
    assert refused.value.hint.startswith(hint), refused.value.hint


def test_what_a_refusal_proposes_does_fit() -> None:
    with pytest.raises(InputError) as refused:
        choose_plan(GEMMA_3_12B, SETTINGS, 8192, machine(vram_gib=3))
    length = int(refused.value.hint.split("max_length_tokens=")[1].split()[0])
    choose_plan(GEMMA_3_12B, SETTINGS, length, machine(vram_gib=3))
    with pytest.raises(InputError):
        choose_plan(GEMMA_3_12B, SETTINGS, 2 * length, machine(vram_gib=3))


def refusal_hint(job: Job, on: Machine) -> str:
    return refusal(job, on, fitted(job, on)).hint


def test_a_larger_card_is_named_with_the_ram_that_is_short_beside_it() -> None:
    job = Job(named_shape("gemma-3-27b"), SETTINGS, 1024, "Q6_K")
    hint = refusal_hint(job, machine(vram_gib=1, ram_gib=8))
    assert "take a rented GPU with 8 GiB in a machine with 14.0 GiB of free RAM, or a smaller model" in hint
    assert fitted(job, machine(vram_gib=8, ram_gib=13.9)).lacking == "RAM"
    assert fitted(job, machine(vram_gib=8, ram_gib=14.1)).lacking is None
    assert hint.replace(" in a machine with 14.0 GiB of free RAM", "") == refusal_hint(job, machine(vram_gib=1))


def test_several_cards_are_not_proposed_as_one_alone_is_trained_on() -> None:
    job = Job(named_shape("gemma-3-27b"), SETTINGS, 1024, "Q6_K")
    larger = job._replace(shape=msgspec.structs.replace(job.shape, hidden_size=1 << 17, intermediate_size=1 << 19))
    hint = refusal_hint(larger, machine(vram_gib=24))
    assert hint == "no shorter length or lower rank fits this card: take a smaller model"


def test_a_refusal_is_made_in_a_fifth_of_a_second() -> None:
    job = Job(GEMMA_3_12B, SETTINGS, 1024, "Q6_K")
    start = time.process_time()
    refusal_hint(job, machine(vram_gib=1))
    assert time.process_time() - start < 0.2


def test_a_table_that_is_not_decoded_is_counted_as_the_bf16_that_is_kept_of_it() -> None:
    levers = Levers(micro_batch=1, resident=0)
    kept, bf16, q8 = (
        head_tile_bytes(Job(GEMMA_3_12B, SETTINGS, 1024, name), levers) for name in ("IQ2_S", "BF16", "Q8_0")
    )
    assert kept == bf16 < q8 + 2 * 8192 * 3840
    ram = [cpu_plan.ram_parts(Job(GEMMA_3_12B, SETTINGS, 1024, name), 1)[1].nbytes for name in ("IQ2_S", "Q6_K")]
    assert ram[0] - ram[1] == GEMMA_3_12B.embedding_parameters * (2 * 256 - 210) // 256


def test_an_unquantized_base_is_wholly_resident_or_refused() -> None:
    unquantized = msgspec.structs.replace(SETTINGS, quantization="none")
    fits = choose_plan(named_shape("gemma-3-1b"), unquantized, 1024, LAPTOP)
    assert (fits.resident_layers, fits.streamed_layers, fits.slots) == (26, 0, 0)
    with pytest.raises(InputError, match=r"^VRAM: ") as refused:
        choose_plan(GEMMA_3_12B, unquantized, 1024, LAPTOP)
    assert refused.value.hint.startswith("--set train.quantization=nf4 would fit")


def test_measurements_take_the_place_of_what_is_assumed() -> None:
    measured = msgspec.structs.replace(ASSUMED, vram_factor=1.2, context_bytes=500 * MIB, flops=24e12)
    before = plan("gemma-3-12b", 2048)
    after = choose_plan(GEMMA_3_12B, SETTINGS, 2048, LAPTOP, calibration=measured)
    assert after.resident_layers < before.resident_layers
    assert after.peak_vram_bytes <= after.vram_budget_bytes
    assert next(part for part in after.vram if part.name == "CUDA context").nbytes == 500 * MIB
    assert after.tokens_per_second > 1.5 * before.tokens_per_second


def test_copies_hide_behind_computing_from_a_few_hundred_tokens_on() -> None:
    fixed = MemorySettings(resident_layers=0)
    shares = [
        plan("gemma-3-12b", length, micro_batch=1, memory=fixed).copies_hidden for length in (64, 128, 256, 512, 1024)
    ]
    assert shares == sorted(shares)
    assert shares[0] < 0.85 and shares[-1] == 1.0
    # The fact sheet: 154 tok/s at 1024 tokens per micro-batch, 12 TFLOPS and 11 GB/s.
    assert plan("gemma-3-12b", 1024, micro_batch=1, memory=fixed).tokens_per_second == pytest.approx(154, rel=0.03)


def test_the_whole_run_takes_as_many_steps_as_samples_or_max_steps_ask_for() -> None:
    found = plan("gemma-3-12b", 1024)
    assert found.step_seconds is not None
    assert needs(found, SETTINGS).seconds is None
    assert needs(found, SETTINGS, samples=800).seconds == pytest.approx(100 * found.step_seconds)
    assert needs(found, SETTINGS, samples=800, mean_length_tokens=256).seconds == pytest.approx(25 * found.step_seconds)
    few = msgspec.structs.replace(SETTINGS, max_steps=10)
    assert needs(found, few, samples=800).seconds == pytest.approx(10 * found.step_seconds)


# -- Without a card


@pytest.mark.parametrize(
    ("tokens", "micro_batch", "measured_mib"),
    # Peak RSS of SmolLM2-135M, NF4, rank 16, two optimizer steps on a 2-core EPYC (Zen 4), Linux.
    [(64, 1, 853), (256, 1, 1139), (256, 2, 1568), (256, 4, 2459), (256, 8, 4319), (1024, 1, 2372)],
)
def test_ram_prediction_is_never_under_what_was_measured_and_at_most_six_percent_over(
    tokens: int, micro_batch: int, measured_mib: int
) -> None:
    parts = cpu_plan.ram_parts(Job(SMOLLM2_135M, RANK_16, tokens, "Q8_0"), micro_batch)
    assert measured_mib < sum(part.nbytes for part in parts) / MIB < 1.06 * measured_mib


def test_smollm_fits_a_small_machine_and_the_nearest_change_is_named_when_it_does_not() -> None:
    choose_plan(SMOLLM2_135M, RANK_16, 1024, machine(ram_gib=4))
    with pytest.raises(InputError, match=r"^RAM: training needs 2.4 GiB, there are 1.9 GiB") as refused:
        choose_plan(SMOLLM2_135M, RANK_16, 1024, machine(ram_gib=2))
    assert refused.value.hint == "--set data.max_length_tokens=512 would fit (1.6 GiB RAM)"
    choose_plan(SMOLLM2_135M, RANK_16, 256, machine(ram_gib=2))
    with pytest.raises(InputError, match=r"^disk: ") as refused:
        choose_plan(SMOLLM2_135M, RANK_16, 256, machine(disk_gib=0.1))
    assert refused.value.hint == "free 99.9 MiB of disk, or give another --home"
    with pytest.raises(InputError) as refused:
        choose_plan(GEMMA_3_12B, SETTINGS, 1024, machine(ram_gib=4))
    assert "RAM" in refused.value.message
    assert "smaller model" in refused.value.hint


def test_a_processor_takes_the_micro_batch_that_is_asked_for_or_the_largest_that_pays() -> None:
    forced = msgspec.structs.replace(RANK_16, micro_batch=4)
    assert choose_plan(SMOLLM2_135M, forced, 256, machine()).batching == Batching(micro_batch=4, accumulation=2)
    assert choose_plan(SMOLLM2_135M, RANK_16, 256, machine()).batching == Batching(micro_batch=2, accumulation=4)
    with pytest.raises(InputError) as refused:
        choose_plan(SMOLLM2_135M, msgspec.structs.replace(RANK_16, micro_batch=8), 256, machine(ram_gib=3))
    assert refused.value.hint.startswith("--set train.micro_batch=1 would fit")
    found = choose_plan(SMOLLM2_135M, RANK_16, 256, machine())
    assert (found.device, found.optimizer, found.recompute, found.vram) == ("cpu", "adamw_torch", False, ())
    # Two cores, one of which is spared; 114 to 134 tok/s were measured.
    assert found.tokens_per_second == pytest.approx(137, abs=1)


def test_a_probe_on_a_processor_corrects_its_plan() -> None:
    measured = msgspec.structs.replace(ASSUMED, vram_factor=1.5 * ASSUMED.vram_factor, flops=ASSUMED.flops / 2)
    before = choose_plan(SMOLLM2_135M, RANK_16, 256, machine())
    after = choose_plan(SMOLLM2_135M, RANK_16, 256, machine(), calibration=measured)
    assert after.peak_ram_bytes == pytest.approx(1.5 * before.peak_ram_bytes, rel=1e-6)
    assert after.tokens_per_second == pytest.approx(before.tokens_per_second / 2)


def test_llama_8b_fits_6_gib_and_larger_cards_take_larger_micro_batches() -> None:
    assert choose_plan(LLAMA_3_1_8B, SETTINGS, 1024, LAPTOP).batching.micro_batch == 1
    assert choose_plan(LLAMA_3_1_8B, SETTINGS, 1024, machine(vram_gib=24)).resident_layers == 32


def test_the_smallest_plan_is_shown_where_none_fits() -> None:
    fit = fitted(Job(named_shape("gemma-3-27b"), SETTINGS, 4096, "Q6_K"), LAPTOP)
    assert fit.lacking == "RAM"
    assert fit.plan.peak_ram_bytes > fit.plan.ram_budget_bytes
    assert fit.plan.offload_checkpoints or fit.plan.resident_layers == 0
