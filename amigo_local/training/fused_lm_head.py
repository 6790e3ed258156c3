"""Puts the tiled head behind `model(..., labels=..., fused_lm_head=True)`, the call that TRL's trainers make."""

from __future__ import annotations

import types
from collections.abc import Callable, Iterator
from functools import wraps
from typing import Any

import torch
from torch import nn

from amigo_local.domain.errors import InputError
from amigo_local.domain.memory_plan import HEAD_TILE_ROWS
from amigo_local.training.buffer_sizes import LOGITS_AT_ONCE
from amigo_local.training.host_embedding import HostHead
from amigo_local.training.logit_rule import LogitRule
from amigo_local.training.samples import IGNORED_LABEL
from amigo_local.training.tiled_head import Head, Statistic, token_statistics

SFT_STATISTICS: tuple[Statistic, ...] = ("entropy", "is_top1")
"""What TRL's SFTTrainer logs; its compute_loss takes nothing less."""
DPO_STATISTICS: tuple[Statistic, ...] = ("entropy", "mean_logits", "is_top1")
"""What DPOTrainer logs; `log_sum_sq_probs` too where use_weighting is on."""


class DeviceHead:
    """A frozen nn.Linear on the device that computes, as tiles."""

    def __init__(self, linear: nn.Linear) -> None:
        self._weight = linear.weight.detach()

    @property
    def shape(self) -> torch.Size:
        return self._weight.shape

    def rows(self, ids: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        return self._weight[ids].to(dtype)

    def tiles(self, dtype: torch.dtype) -> Iterator[tuple[int, torch.Tensor]]:
        for first in range(0, self._weight.shape[0], HEAD_TILE_ROWS):
            yield first, self._weight[first : first + HEAD_TILE_ROWS].to(dtype)


def attach_fused_lm_head(
    model: Any, statistics: tuple[Statistic, ...] = (), logits_at_once: int = LOGITS_AT_ONCE
) -> None:
    """Answers `fused_lm_head=True` as trl.trainer.utils.add_fused_lm_head does, with FusedCausalLMOutput.

    model: a causal LM of transformers or a PeftModel of one. Call it after the trainer's __init__, in which TRL wraps
    the same `forward`; every other call goes on to what was there. `entropy` carries no gradient here, nor is there a
    temperature: what they are for (GRPO, RLOO) isn't trained.

    Raises InputError for a head that is trained, adapted or has a bias, and for a mixture of experts.
    """
    causal_lm = model.get_base_model() if hasattr(model, "get_base_model") else model
    head = _frozen_head(causal_lm)
    config = causal_lm.config.get_text_config()
    if getattr(config, "output_router_logits", False):
        raise InputError("the tiled head has no loss for a router of experts", "train a dense model")
    rule = LogitRule.of(config)
    before: Callable[..., Any] = causal_lm.forward

    @wraps(type(causal_lm).forward)  # transformers and TRL read its signature
    def forward(self: Any, *args: Any, fused_lm_head: bool = False, **kwargs: Any) -> Any:
        if not fused_lm_head:
            return before(*args, **kwargs)
        return _fused_forward(self, head, rule, statistics, logits_at_once, *args, **kwargs)

    causal_lm.forward = types.MethodType(forward, causal_lm)


def _fused_forward(
    causal_lm: Any,
    head: Head,
    rule: LogitRule,
    statistics: tuple[Statistic, ...],
    logits_at_once: int,
    *args: Any,
    labels: torch.Tensor | None = None,
    shift_labels: torch.Tensor | None = None,
    num_items_in_batch: Any = None,
    **kwargs: Any,
) -> Any:
    """labels (batch, sequence), of which position t predicts t+1; shift_labels: the same, shifted by the caller."""
    from trl.trainer.utils import FusedCausalLMOutput

    kwargs["use_cache"] = False
    hidden = causal_lm.base_model(*args, **kwargs).last_hidden_state
    if shift_labels is None:
        assert labels is not None
        hidden, shift_labels = hidden[:, :-1], labels[:, 1:]
    shift_labels = shift_labels.to(hidden.device)
    mask = shift_labels != IGNORED_LABEL
    found = token_statistics(hidden[mask], shift_labels[mask], head, rule, statistics, logits_at_once)
    # masked_scatter keeps a batch without labels connected to the model: a zero that can be differentiated.
    spread = {
        name: None if value is None else value.new_zeros(mask.shape).masked_scatter(mask, value)
        for name, value in found._asdict().items()
    }
    log_probs = spread["log_probs"]
    assert log_probs is not None
    items = mask.sum().clamp(min=1) if num_items_in_batch is None else num_items_in_batch
    return FusedCausalLMOutput(loss=-log_probs.sum() / items, label_mask=mask, **spread)


def _frozen_head(causal_lm: Any) -> Head:
    head = causal_lm.get_output_embeddings()
    if isinstance(head, HostHead):
        return head
    if type(head) is not nn.Linear or head.bias is not None or head.weight.requires_grad:
        raise InputError(
            f"the tiled head needs a frozen linear head without a bias, found {head}",
            "leave lm_head out of train.lora.targets",
        )
    return DeviceHead(head)
