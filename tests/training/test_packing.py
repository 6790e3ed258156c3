"""Samples that share a row see nothing of each other: logits, loss and gradients are those of each alone."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch

from amigo_local.training.micro_batches import MicroBatch, StepRow, lay_out
from amigo_local.training.samples import Sample

SIZES = {
    "vocab_size": 97,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 256,
    "attn_implementation": "sdpa",
}


def llama() -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    return LlamaForCausalLM(LlamaConfig(**SIZES, num_hidden_layers=2))


def gemma3() -> Any:
    """Sliding layers with a window shorter than the samples, and a full one."""
    from transformers import Gemma3ForCausalLM, Gemma3TextConfig

    kinds = ["sliding_attention", "sliding_attention", "full_attention"]
    config = Gemma3TextConfig(**SIZES, num_hidden_layers=3, layer_types=kinds, sliding_window=6)
    return Gemma3ForCausalLM(config)


def rows() -> list[StepRow]:
    generator = torch.Generator().manual_seed(3)
    return [
        StepRow(index, index + 1, (Sample(torch.randint(1, 97, (length,), generator=generator).tolist(), start),))
        for index, (length, start) in enumerate([(23, 9), (2, 1), (14, 3), (31, 30)])
    ]


def forward(model: Any, batch: MicroBatch) -> tuple[torch.Tensor, torch.Tensor]:
    """(logits of the samples, laid end to end; summed loss)."""
    hidden = model.base_model(
        input_ids=batch.input_ids, position_ids=batch.position_ids, use_cache=False
    ).last_hidden_state
    logits = model.get_output_embeddings()(hidden)
    loss = torch.nn.functional.cross_entropy(
        logits[:, :-1].flatten(0, 1), batch.labels[:, 1:].flatten(), ignore_index=-100, reduction="sum"
    )
    return torch.cat([logits[s.row, s.start : s.stop] for s in batch.spans]), loss


def learnt(model: Any, batches: list[MicroBatch]) -> tuple[torch.Tensor, float, dict[str, torch.Tensor]]:
    model = copy.deepcopy(model)
    found, total = [], 0.0
    for batch in batches:
        logits, loss = forward(model, batch)
        loss.backward()
        found.append(logits.detach())
        total += float(loss.detach())
    return torch.cat(found), total, {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("make", [llama, gemma3])
@pytest.mark.parametrize("packing", [True, False])
def test_a_step_in_one_row_equals_its_samples_one_by_one(make: Callable[[], Any], packing: bool) -> None:
    torch.manual_seed(0)
    model = make().float()
    together = learnt(model, [lay_out(rows(), packing)])
    alone = learnt(model, [lay_out([one], packing=False) for one in rows()])
    torch.testing.assert_close(together[0], alone[0], rtol=0, atol=2e-6)
    assert together[1] == pytest.approx(alone[1], rel=1e-6)
    assert together[2].keys() == alone[2].keys()
    scale = max(float(gradient.abs().max()) for gradient in alone[2].values())
    for name, gradient in alone[2].items():
        torch.testing.assert_close(together[2][name], gradient, rtol=0, atol=2e-6 * max(1.0, scale), msg=name)


@pytest.mark.parametrize("make", [llama, gemma3])
def test_without_restarting_positions_samples_would_leak_into_each_other(make: Callable[[], Any]) -> None:
    import msgspec

    torch.manual_seed(0)
    model = make().float()
    packed = lay_out(rows(), packing=True)
    leaking = msgspec.structs.replace(packed, position_ids=None)
    with torch.no_grad():
        separate, mixed = forward(model, packed)[0], forward(model, leaking)[0]
    first = packed.spans[0].stop
    torch.testing.assert_close(separate[:first], mixed[:first], rtol=0, atol=2e-6)  # nothing came before it
    assert (separate[first:] - mixed[first:]).abs().max() > 1e-2


def test_padding_behind_the_samples_changes_nothing() -> None:
    import msgspec

    torch.manual_seed(0)
    model = gemma3().float()
    packed = lay_out(rows(), packing=True)
    end = packed.spans[-1].stop
    assert end < packed.input_ids.shape[1]
    other = packed.input_ids.clone()
    other[0, end:] = 42
    with torch.no_grad():
        torch.testing.assert_close(
            forward(model, packed)[0],
            forward(model, msgspec.structs.replace(packed, input_ids=other))[0],
            rtol=0,
            atol=0,
        )
