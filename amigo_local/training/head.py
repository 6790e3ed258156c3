"""The loss at the head, computed only where a completion token is predicted."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as functional

from amigo_local.training.samples import IGNORED_LABEL

ROWS_PER_TILE = 512
"""Logit rows alive at once: 512 x 49,152 f32 are 96 MiB, 512 x 262,208 are 512 MiB."""

# What some architectures do to logits after the projection; this head does none of it.
_LOGIT_CHANGES = ("final_logit_softcapping", "logit_scale", "logits_scaling", "lm_head_multiplier", "output_multiplier")


class _CompletionLoss(torch.autograd.Function):
    """Sum of cross-entropies; the gradient of the hidden states is made along with it.

    The head is frozen, so d(loss)/d(hidden) = (softmax(logits) - onehot(target)) @ weight is all the
    backward pass needs, and logits never outlive their tile (Liger Kernel's fused linear
    cross-entropy does the same).
    """

    @staticmethod
    def forward(ctx: Any, hidden: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        total = torch.zeros((), dtype=torch.float32, device=hidden.device)
        gradient = torch.empty_like(hidden)
        for start in range(0, hidden.shape[0], ROWS_PER_TILE):
            rows = slice(start, start + ROWS_PER_TILE)
            logits = functional.linear(hidden[rows], weight).float()
            wanted = targets[rows, None]
            log_normalizer = logits.logsumexp(dim=-1, keepdim=True)
            total += (log_normalizer - logits.gather(1, wanted)).sum()
            probabilities = logits.sub_(log_normalizer).exp_()
            probabilities.scatter_add_(1, wanted, torch.full_like(wanted, -1, dtype=probabilities.dtype))
            gradient[rows] = probabilities.to(weight.dtype) @ weight
        ctx.save_for_backward(gradient)
        return total

    @staticmethod
    def backward(ctx: Any, *outputs: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        (gradient,) = ctx.saved_tensors
        return gradient * outputs[0].to(gradient.dtype), None, None


def completion_loss(hidden: torch.Tensor, weight: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Sum over the batch of -log p(label), f32.

    hidden (batch, sequence, width); weight (vocabulary, width), frozen; labels (batch, sequence)
    int64, IGNORED_LABEL where nothing is to be learnt. Position t predicts label t+1.
    """
    counted = labels[:, 1:] != IGNORED_LABEL
    apply: Any = _CompletionLoss.apply  # torch leaves it untyped
    loss: torch.Tensor = apply(hidden[:, :-1][counted], weight, labels[:, 1:][counted])
    return loss


def applies_to(model: Any) -> bool:
    """Whether the causal LM's logits are plainly `hidden @ weight.T`."""
    config, head = model.config.get_text_config(), model.get_output_embeddings()
    changed = any(getattr(config, name, None) not in (None, 1.0) for name in _LOGIT_CHANGES)
    return not changed and type(head) is torch.nn.Linear and head.bias is None
