"""Embedding and head over host tables inside a real model, against transformers' own modules."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from amigo_local.training.copy_engine import ThreadedEngine
from amigo_local.training.host_embedding import HostEmbedding, HostHead
from amigo_local.training.host_table import HostTable
from tests.support.host_model import CPU, host_table, load, move_to_host, round_to, whole
from tests.support.quantized_model import lora
from tests.support.storage_watch import StorageWatch
from tests.support.tiny_families import write_family

IDS = torch.tensor([[3, 1, 4, 1, 5, 9, 2, 6], [0, 383, 0, 7, 7, 7, 200, 1]])


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Hidden 256, so that rows are whole blocks of Q6_K; tied."""
    folder = tmp_path_factory.mktemp("host")
    return {
        name: write_family(folder / name, name, hidden_size=256, num_hidden_layers=2, tie_word_embeddings=True)
        for name in ("gemma3", "gemma2", "llama")
    }


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("type_name", ["BF16", "Q6_K"])
def test_gemmas_scaled_embedding_is_met_bit_for_bit(dtype: torch.dtype, type_name: str) -> None:
    from transformers.models.gemma3.modeling_gemma3 import Gemma3TextScaledWordEmbedding

    theirs = Gemma3TextScaledWordEmbedding(500, 256, padding_idx=0, embed_scale=3840**0.5).to(dtype)
    table = host_table(theirs.weight, type_name)
    theirs.weight.data = whole(table, dtype)
    ours = HostEmbedding(table, 3840**0.5, dtype, CPU, padding_idx=0)
    ids = torch.randint(0, 500, (3, 50))
    assert torch.equal(ours(ids), theirs(ids))
    assert ours(ids).dtype == dtype


@pytest.mark.parametrize("family", ["gemma3", "gemma2", "llama"])
@pytest.mark.parametrize("type_name", ["BF16", "Q6_K"])
def test_a_model_gives_the_same_logits_with_its_tables_on_the_host(
    checkpoints: dict[str, Path], family: str, type_name: str
) -> None:
    """Gemma 2 caps them and Gemma 3 scales its embedding; tiles arrive when they are waited for."""
    ours, theirs = (load(checkpoints[family]) for _ in range(2))
    engine = ThreadedEngine(late=1.0)
    round_to(theirs, move_to_host(ours, type_name, engine))
    torch.testing.assert_close(ours(input_ids=IDS).logits, theirs(input_ids=IDS).logits, rtol=1e-5, atol=1e-5)
    chosen = [model.generate(IDS[:1], max_new_tokens=5, do_sample=False) for model in (ours, theirs)]
    assert torch.equal(*chosen)
    engine.close()


def test_whole_logits_carry_the_gradient_of_a_linear_head() -> None:
    hidden = torch.randn(2, 5, 256, requires_grad=True)
    table = host_table(torch.randn(500, 256), "Q6_K")
    wanted = torch.randn(2, 5, 500)
    gradients = []
    for head in (HostHead(table, torch.float32, CPU, 64), lambda x: x @ whole(table, torch.float32).t()):
        hidden.grad = None
        (head(hidden) * wanted).sum().backward()
        gradients.append(hidden.grad)
    torch.testing.assert_close(*gradients, rtol=1e-5, atol=1e-4)


def test_whole_logits_are_autocast_as_a_linear_heads_are() -> None:
    hidden, table = torch.randn(2, 5, 256), host_table(torch.randn(500, 256), "F32")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        ours = HostHead(table, torch.float32, CPU, 64)(hidden)
        theirs = torch.nn.functional.linear(hidden, whole(table, torch.float32))
    assert ours.dtype == theirs.dtype == torch.bfloat16
    torch.testing.assert_close(ours, theirs)


def test_neither_optimizer_nor_checkpoint_nor_a_move_sees_the_table() -> None:
    table = host_table(torch.randn(500, 256), "Q6_K")
    model = torch.nn.ModuleDict(
        {"embedding": HostEmbedding(table, 1.0, torch.float32, CPU), "head": HostHead(table, torch.float32, CPU)}
    )
    assert [*model.parameters(), *model.buffers()] == []
    assert model.state_dict() == {}
    before = table.raw.clone()
    model.to(torch.bfloat16)
    assert torch.equal(table.raw, before)
    assert model["embedding"](IDS).dtype == torch.bfloat16
    model.to("meta")  # as to a card
    assert model["embedding"](IDS).device.type == model["head"].weight.device.type == "meta"


def test_the_shape_of_the_weight_can_be_asked_for_but_not_its_numbers() -> None:
    """PEFT and transformers read shape, dtype and device of an embedding's weight here and there."""
    table = host_table(torch.randn(500, 256), "Q6_K")
    for module in (HostEmbedding(table, 2.0, torch.bfloat16, CPU), HostHead(table, torch.bfloat16, CPU)):
        with StorageWatch() as watch:
            weight = module.weight
            assert (tuple(weight.shape), weight.dtype, weight.device) == ((500, 256), torch.bfloat16, CPU)
            assert weight.numel() == 128_000 and not weight.requires_grad and weight.is_floating_point()
        assert watch.peak_bytes == 0
        with pytest.raises(RuntimeError, match="lies on the host"):
            weight + 1
        with pytest.raises(RuntimeError, match="lies on the host"):
            weight[0]


def test_peft_adapts_saves_and_loads_a_model_whose_tables_are_on_the_host(
    checkpoints: dict[str, Path], tmp_path: Path
) -> None:
    from peft import PeftModel, get_peft_model
    from safetensors.torch import load_file

    model = load(checkpoints["gemma3"])
    move_to_host(model)
    adapted = get_peft_model(model, lora())
    assert not any("lm_head" in name or "embed_tokens" in name for name, _ in adapted.named_parameters())
    with torch.no_grad():
        for parameter in adapted.parameters():
            if parameter.requires_grad:
                parameter.normal_(std=0.1)
    adapted.eval()
    expected = adapted(input_ids=IDS).logits
    adapted.save_pretrained(tmp_path)
    assert all("lora" in name for name in load_file(tmp_path / "adapter_model.safetensors"))

    again = load(checkpoints["gemma3"])
    move_to_host(again)
    again.tie_weights()
    again.tie_weights(recompute_mapping=False)
    assert torch.equal(PeftModel.from_pretrained(again, tmp_path).eval()(input_ids=IDS).logits, expected)


def test_gradients_reach_the_adapter_through_checkpointed_layers(checkpoints: dict[str, Path]) -> None:
    """`enable_input_require_grads` hooks the embedding: its output is all that a reentrant checkpoint starts from."""
    from peft import get_peft_model

    gradients = []
    for on_host in (True, False):
        model = load(checkpoints["gemma3"])
        if on_host:
            move_to_host(model, "F32")
        torch.manual_seed(0)
        adapted = get_peft_model(model, lora(dropout=0.0))
        adapted.gradient_checkpointing_enable({"use_reentrant": True})
        adapted.enable_input_require_grads()
        adapted.train()
        adapted(input_ids=IDS, labels=IDS).loss.backward()
        gradients.append({n: p.grad for n, p in adapted.named_parameters() if p.requires_grad and "lora_B" in n})
    assert all(gradient.abs().sum() > 0 for gradient in gradients[0].values())
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradient, gradients[1][name], rtol=1e-4, atol=1e-6)


def test_neftune_adds_its_noise_to_the_embedding_in_training(checkpoints: dict[str, Path]) -> None:
    from transformers.integrations.neftune import activate_neftune

    noisy = []
    for on_host in (True, False):
        model = load(checkpoints["gemma3"])
        if on_host:
            move_to_host(model, "F32")
        activate_neftune(model, 5.0)
        embedding = model.get_input_embeddings()
        plain = embedding.eval()(IDS)
        torch.manual_seed(3)
        noisy.append(embedding.train()(IDS))
        assert 0 < (noisy[-1] - plain).abs().max() <= 5 / (8 * 256) ** 0.5
    assert torch.equal(*noisy)


def test_a_table_of_weights_in_memory_is_used_as_it_is(checkpoints: dict[str, Path]) -> None:
    model = load(checkpoints["llama"], torch.bfloat16)
    table = HostTable.of(model.get_input_embeddings().weight)
    embedding = HostEmbedding(table, 1.0, torch.bfloat16, CPU)
    assert torch.equal(embedding(IDS), model.get_input_embeddings()(IDS))
