"""Sizes of single parts, against the libraries that allocate them."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest
import torch

from amigo_local.domain.recipe import LoraSettings, TrainSettings
from amigo_local.domain.shape import ModelShape
from amigo_local.domain.units import MIB
from amigo_local.stages._shapes import checkpoint_shape, named_shape
from amigo_local.training import layer_pack, memory_formula
from amigo_local.training.memory_formula import (
    Job,
    Levers,
    adapter_parameters,
    layer_bytes,
    micro_batch_rows,
    optimizer_state,
    row_bytes,
)
from amigo_local.training.memory_parts import ram_parts, vram_parts
from amigo_local.training.micro_batches import footprint
from amigo_local.training.working_set import dora_bytes, layer_work, saved_by_attention
from tests.support.planning import GEMMA_3_12B, LLAMA_3_1_8B, shipped_config
from tests.support.quantized_model import load_nf4, write_tiny_gemma
from tests.support.storage_watch import StorageWatch

SETTINGS = TrainSettings()


def job(shape: ModelShape, length: int = 1024, **settings: object) -> Job:
    return Job(shape, msgspec.structs.replace(SETTINGS, **settings), length, "Q6_K")


def test_a_layers_bytes_are_those_of_its_pack(tmp_path: Path) -> None:
    model = load_nf4(write_tiny_gemma(tmp_path))
    assert layer_bytes(checkpoint_shape(tmp_path)) == layer_pack.pack_layer(model.model.layers[0]).nbytes == 22_016
    assert layer_bytes(GEMMA_3_12B) / MIB == pytest.approx(110.27, abs=0.01)
    assert 48 * layer_bytes(GEMMA_3_12B) / MIB == pytest.approx(5293, abs=1)


@pytest.mark.parametrize("name", ["gemma-3-12b", "llama-3.1-8b"])
@pytest.mark.parametrize("targets", ["all-linear", ("q_proj", "v_proj")])
@pytest.mark.parametrize("dora", [False, True])
def test_the_adapter_has_as_many_parameters_as_pefts(name: str, targets: str | tuple[str, ...], dora: bool) -> None:
    from peft import LoraConfig, get_peft_model
    from transformers import CONFIG_MAPPING, AutoModelForCausalLM

    found = shipped_config(name)
    config = CONFIG_MAPPING[found["model_type"]].from_dict(found).get_text_config()
    config.num_hidden_layers = 2
    if getattr(config, "layer_types", None):
        config.layer_types = config.layer_types[:2]
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
        modules = targets if targets == "all-linear" else list(targets)
        config = LoraConfig(r=8, target_modules=modules, task_type="CAUSAL_LM", use_dora=dora)
        model = get_peft_model(model, config)
    trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    shape = msgspec.structs.replace(named_shape(name), layers=2)
    lora = LoraSettings(rank=8, targets=targets, use_dora=dora)
    assert adapter_parameters(job(shape, lora=lora)) == trainable


def test_optimizer_state_is_what_bitsandbytes_makes() -> None:
    from bitsandbytes.optim import AdamW8bit

    shape = msgspec.structs.replace(
        LLAMA_3_1_8B, layers=1, hidden_size=96, intermediate_size=320, heads=3, kv_heads=1, head_dim=32
    )
    rank = 16
    parameters = [
        torch.nn.Parameter(torch.zeros(elements))
        for inputs, outputs in shape.linears.values()
        for elements in (rank * inputs, rank * outputs)
    ]
    assert any(p.numel() < 4096 for p in parameters) and any(p.numel() > 4096 for p in parameters)
    optimizer = AdamW8bit(parameters)
    for index, parameter in enumerate(parameters):
        optimizer.init_state(optimizer.param_groups[0], parameter, 0, index)
    made = sum(
        state[name].nbytes
        for state in optimizer.state.values()
        for name in ("state1", "state2", "absmax1", "absmax2")
        if name in state
    )
    found = optimizer_state(job(shape, lora=LoraSettings(rank=rank)), "adamw_8bit")
    assert found.on_card + found.paged == made
    # Gemma-3-12B at rank 32: only tensors from 100,000 elements on are paged.
    paged = optimizer_state(job(GEMMA_3_12B), "paged_adamw_8bit")
    plain = optimizer_state(job(GEMMA_3_12B), "adamw_8bit")
    assert paged.on_card + paged.paged == plain.on_card
    assert (paged.paged / MIB, paged.on_card / MIB) == (pytest.approx(237.8, abs=0.1), pytest.approx(15.9, abs=0.1))


@pytest.mark.parametrize("method", ["sft", "dpo"])
@pytest.mark.parametrize("packing", [True, False])
@pytest.mark.parametrize("micro_batch", [1, 2, 4])
def test_a_micro_batch_is_as_large_as_its_footprint_may_be(method: str, packing: bool, micro_batch: int) -> None:
    rows = micro_batch_rows(job(GEMMA_3_12B, 1000, method=method, packing=packing), micro_batch)
    sequences = max(micro_batch, 2 if method == "dpo" else 1)
    assert rows.tokens == footprint([[1000] * sequences], packing=False) == 1024 * sequences


def test_padded_rows_need_a_mask_where_they_are_longer_than_a_window() -> None:
    masks = [micro_batch_rows(job(GEMMA_3_12B, length, packing=False), 2).masks for length in (512, 1024, 2048)]
    assert masks == [0, 1, 1]
    assert micro_batch_rows(job(LLAMA_3_1_8B, 2048, packing=False), 2).masks == 0


def test_parts_of_gemma_12b_at_2048_tokens() -> None:
    levers = Levers(micro_batch=1, resident=0)
    parts = {part.name: round(part.nbytes / MIB) for part in vram_parts(job(GEMMA_3_12B, 2048), levers)}
    assert parts == {
        "CUDA context": 350,
        "layer slots": 221,
        "norms": 3,
        "adapter": 500,
        "its gradients": 500,
        "optimizer": 16,
        "checkpoints": 720,
        "one layer's work": 723,
        "allocator slack": 161,
    }
    host = {part.name: round(part.nbytes / MIB) for part in ram_parts(job(GEMMA_3_12B, 2048), levers)}
    assert host == {
        "process": 2560,
        "streamed layers": 5293,
        "embedding and head": 788,
        "staging ring": 64,
        "paged optimizer": 238,
    }


def test_what_costs_memory_is_counted() -> None:
    levers = Levers(micro_batch=1, resident=0)
    plain = layer_work(job(GEMMA_3_12B, 2048), levers)
    dora = layer_work(job(GEMMA_3_12B, 2048, lora=LoraSettings(use_dora=True)), levers)
    # The identity that LoRA's weight is read off with, of down_proj: 15360 x 15360 in f32 and bf16.
    assert dora - plain >= 6 * 15360**2
    unpacked = layer_work(job(LLAMA_3_1_8B, 2048, packing=False), levers)
    assert layer_work(job(LLAMA_3_1_8B, 2048), levers) - unpacked == 3 * 2048**2  # a bool mask and its bf16 copy
    tiled = layer_work(job(GEMMA_3_12B, 4096), levers._replace(mlp_tile_tokens=512))
    assert tiled < 0.8 * layer_work(job(GEMMA_3_12B, 4096), levers)


def test_doras_norm_takes_no_more_than_is_counted() -> None:
    """PEFT's own, of a square projection and one token."""
    from bitsandbytes.nn import Linear4bit
    from peft import LoraConfig, get_peft_model

    sizes = {"hidden_size": 512, "intermediate_size": 512, "heads": 8, "kv_heads": 8, "head_dim": 64}
    shape = msgspec.structs.replace(LLAMA_3_1_8B, **sizes)
    linear = Linear4bit(512, 512, bias=False, compute_dtype=torch.bfloat16, quant_type="nf4").to("cpu")
    model = get_peft_model(torch.nn.Sequential(linear), LoraConfig(r=4, target_modules=["0"], use_dora=True))
    with StorageWatch(*model.parameters()) as watch, torch.autocast("cpu", dtype=torch.bfloat16):
        model(torch.randn(1, 512))
    counted = dora_bytes(job(shape, lora=LoraSettings(rank=4, use_dora=True)))
    assert watch.peak_bytes <= counted <= 1.15 * watch.peak_bytes


def test_a_table_whose_rows_are_no_whole_blocks_is_stored_in_another_type() -> None:
    assert row_bytes(job(GEMMA_3_12B)) == 3840 // 256 * 210
    assert row_bytes(job(named_shape("gemma-3-1b"))) == 1152 // 32 * 34  # Q8_0, as llama.cpp falls back to
    assert row_bytes(Job(GEMMA_3_12B, SETTINGS, 1, "IQ2_S")) == 2 * 3840  # not decodable here: kept as bf16


def test_shapes_with_norms_on_queries_biases_or_untied_heads_differ_where_they_should() -> None:
    untied = msgspec.structs.replace(GEMMA_3_12B, tied_embeddings=False)
    levers = Levers(micro_batch=1, resident=0)
    tables = [
        next(part.nbytes for part in ram_parts(job(shape), levers) if part.name == "embedding and head")
        for shape in (GEMMA_3_12B, untied)
    ]
    assert tables[1] == 2 * tables[0]
    biased = msgspec.structs.replace(GEMMA_3_12B, attention_bias=True)
    assert memory_formula.small_bytes(biased) - memory_formula.small_bytes(GEMMA_3_12B) == 4 * 48 * 8192
    without = msgspec.structs.replace(GEMMA_3_12B, qk_norms=False)
    with_norms, none = (saved_by_attention(job(s), micro_batch_rows(job(s), 1)) for s in (GEMMA_3_12B, without))
    assert with_norms - none == 1024 * 4 * (4096 + 2048)
