"""Log-probabilities of targets from hidden states, in one pass over tiles of the vocabulary: logits never exist."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal, NamedTuple, Protocol

import torch

from amigo_local.training.buffer_sizes import LOGITS_AT_ONCE
from amigo_local.training.logit_rule import LogitRule

Statistic = Literal["entropy", "log_sum_sq_probs", "mean_logits", "is_top1"]
"""What TRL's FusedCausalLMOutput may hold besides log_probs; each costs a pass over the logits of a tile or two. Our
trainers ask for none; TRL's own, which are trained through this head unmodified to prove it, do."""


class Head(Protocol):
    """A frozen (vocabulary, width) matrix, wherever it lies."""

    @property
    def shape(self) -> torch.Size: ...

    def rows(self, ids: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        """ids (n,) int64 -> (n, width) of `dtype` on the device that computes."""

    def tiles(self, dtype: torch.dtype) -> Iterator[tuple[int, torch.Tensor]]:
        """(first row, (rows, width) on the device that computes, valid until the next one is asked for)."""


class TokenStatistics(NamedTuple):
    """Of the next-token distribution at each of N positions, f32 (N,); None where it wasn't asked for."""

    log_probs: torch.Tensor
    """Of the targets. The only one that carries a gradient."""
    entropy: torch.Tensor | None
    log_sum_sq_probs: torch.Tensor | None
    """log(sum of p^2)."""
    mean_logits: torch.Tensor | None
    is_top1: torch.Tensor | None
    """bool: whether the target is the first of the most likely tokens, as argmax would choose."""


def token_statistics(
    hidden: torch.Tensor,
    targets: torch.Tensor,
    head: Head,
    rule: LogitRule,
    statistics: tuple[Statistic, ...] = (),
    logits_at_once: int = LOGITS_AT_ONCE,
) -> TokenStatistics:
    """hidden (N, width), targets (N,) int64 on the same device; N may be 0.

    Matrix products run in autocast's dtype, or that of `hidden`, and accumulate in f32. The gradient of `hidden` is
    made in the same pass, when autograd will want it, and waits as f32 (N, width): the head is frozen, so
    d log p(y) / d hidden = W[y] - sum_v p_v W[v], the shape of attention with K = V = W, whose online softmax
    (Milakov & Gimelshein 2018; FlashAttention, algorithm 1) accumulates it while tiles go by.
    """
    apply: Any = _TiledLogProbs.apply  # torch leaves it untyped
    # Within a Function's forward neither is known: needs_input_grad is true under no_grad too.
    with_gradient = torch.is_grad_enabled() and hidden.requires_grad
    return TokenStatistics(*apply(hidden, targets, head, rule, statistics, logits_at_once, with_gradient))


class _TiledLogProbs(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: torch.Tensor,
        targets: torch.Tensor,
        head: Head,
        rule: LogitRule,
        statistics: tuple[Statistic, ...],
        logits_at_once: int,
        with_gradient: bool,
    ) -> tuple[torch.Tensor | None, ...]:
        ctx.set_materialize_grads(False)
        device = hidden.device.type
        autocast = torch.is_autocast_enabled(device)
        dtype = torch.get_autocast_dtype(device) if autocast else hidden.dtype
        running = _Running(hidden, targets, rule, statistics, with_gradient)
        if targets.numel():
            low_hidden = hidden.detach().to(dtype)
            for first, weight in head.tiles(dtype):
                running.fold_tile(first, weight, low_hidden, logits_at_once)
            if running.pulled is not None:
                ctx.save_for_backward(running.gradient(head.rows(targets, dtype)))
        ctx.hidden_shape, ctx.hidden_dtype = hidden.shape, hidden.dtype
        found = running.statistics(head.shape[0])
        ctx.mark_non_differentiable(*(value for value in found[1:] if value is not None))
        return found

    @staticmethod
    def backward(ctx: Any, *outputs: torch.Tensor | None) -> tuple[torch.Tensor | None, ...]:
        wanted = outputs[0]
        if wanted is None:
            return (None,) * 7
        into = torch.empty(ctx.hidden_shape, dtype=ctx.hidden_dtype, device=wanted.device)
        if ctx.saved_tensors:
            torch.mul(ctx.saved_tensors[0], wanted[:, None], out=into)
        return into, None, None, None, None, None, None


class _Running:
    """An online softmax over the vocabulary for N tokens: what is known after the tiles seen so far."""

    def __init__(
        self,
        hidden: torch.Tensor,
        targets: torch.Tensor,
        rule: LogitRule,
        wanted: tuple[Statistic, ...],
        with_gradient: bool,
    ) -> None:
        self._targets, self._rule, self._wanted = targets, rule, wanted

        def zeros(*shape: int) -> torch.Tensor:
            return torch.zeros(shape, dtype=torch.float32, device=hidden.device)

        tokens = len(targets)
        # Finite, so that nothing times the distance to it is NaN.
        self._maximum = zeros(tokens).fill_(torch.finfo(torch.float32).min)
        self._total = zeros(tokens)
        """Sum of exp(logit - maximum), as the next two are sums with that factor."""
        self._weighted_distance, self._total_of_squares = zeros(tokens), zeros(tokens)
        self._sum_of_logits = zeros(tokens)
        self._best = torch.full_like(targets, -1)
        self._target_logit, self._target_slope = zeros(tokens), zeros(tokens).fill_(1)
        self.pulled = zeros(*hidden.shape) if with_gradient else None
        """(N, width): sum over all but the target of exp(logit - maximum) * slope * W."""
        self._scratch: dict[str, torch.Tensor] = {}

    def fold_tile(self, first: int, weight: torch.Tensor, hidden: torch.Tensor, logits_at_once: int) -> None:
        """weight: (rows, width), vocabulary rows from `first` on; hidden: (N, width) of the same dtype."""
        step = max(1, logits_at_once // weight.shape[0])
        for start in range(0, hidden.shape[0], step):
            tokens = slice(start, start + step)
            self._fold(first, weight, hidden[tokens], tokens)

    def _fold(self, first: int, weight: torch.Tensor, hidden: torch.Tensor, tokens: slice) -> None:
        logits = self._buffer("logits", hidden, weight, torch.float32)
        low = None if weight.dtype == torch.float32 else self._buffer("low", hidden, weight, weight.dtype)
        _product(hidden, weight.t(), logits, low)
        slopes = self._buffer("slopes", hidden, weight, torch.float32) if self._rule.softcap is not None else None
        self._rule.apply_(logits, slopes)
        column, inside = self._find_targets(first, logits, slopes, tokens)
        rescaling = self._raise_maximum(first, logits, tokens)
        powers = logits.sub_(self._maximum[tokens, None])
        if "entropy" in self._wanted:
            distances = powers
            powers = torch.exp(distances, out=self._buffer("powers", hidden, weight, torch.float32))
            self._weighted_distance[tokens] += distances.mul_(powers).sum(-1)
        else:
            powers.exp_()
        self._total[tokens] += powers.sum(-1)
        if "log_sum_sq_probs" in self._wanted:
            self._total_of_squares[tokens] += torch.linalg.vector_norm(powers, dim=-1).square_()
        if self.pulled is not None:
            if slopes is not None:
                powers.mul_(slopes)
            # The target's own share is left for `gradient`, which takes it from 1 in f32.
            powers.scatter_(1, column, powers.gather(1, column).masked_fill_(inside[:, None], 0))
            pulled = self.pulled[tokens].mul_(rescaling[:, None])
            _accumulate(pulled, powers, weight, low)

    def _find_targets(
        self, first: int, logits: torch.Tensor, slopes: torch.Tensor | None, tokens: slice
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Notes the logits of the targets in this tile; returns their columns (n, 1) and which are there (n,)."""
        local = self._targets[tokens] - first
        inside = (local >= 0) & (local < logits.shape[1])
        column = local.clamp_(0, logits.shape[1] - 1)[:, None]
        for found, source in ((self._target_logit, logits), (self._target_slope, slopes)):
            if source is not None:
                found[tokens] = torch.where(inside, source.gather(1, column)[:, 0], found[tokens])
        return column, inside

    def _raise_maximum(self, first: int, logits: torch.Tensor, tokens: slice) -> torch.Tensor:
        """Brings the sums so far to the new maximum; returns the factor (n,) that did it."""
        before = self._maximum[tokens]
        if "mean_logits" in self._wanted:
            self._sum_of_logits[tokens] += logits.sum(-1)
        if "is_top1" in self._wanted:
            peak, place = logits.max(dim=-1)
            self._best[tokens] = torch.where(peak > before, place + first, self._best[tokens])
        else:
            peak = logits.amax(-1)
        drop = before - torch.maximum(before, peak)
        rescaling = drop.exp()
        self._weighted_distance[tokens] += self._total[tokens] * drop
        self._weighted_distance[tokens] *= rescaling
        self._total[tokens] *= rescaling
        self._total_of_squares[tokens] *= rescaling.square()
        self._maximum[tokens] = torch.maximum(before, peak)
        return rescaling

    def _buffer(self, name: str, hidden: torch.Tensor, weight: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        """(tokens, rows), the memory of the first and largest tile used again: fresh pages cost as much as an exp."""
        size = hidden.shape[0] * weight.shape[0]
        if name not in self._scratch:
            self._scratch[name] = torch.empty(size, dtype=dtype, device=hidden.device)
        return self._scratch[name][:size].view(hidden.shape[0], weight.shape[0])

    def gradient(self, target_rows: torch.Tensor) -> torch.Tensor:
        """(N, width) f32, in the memory of `pulled`: d log p(target) / d hidden."""
        assert self.pulled is not None
        log_probs = self._log_probs()
        # (1 - p) W[y] - sum_{v != y} p_v W[v]: W[y] - sum_v p_v W[v] would cancel where p is nearly 1.
        push = torch.expm1(log_probs).neg_().mul_(self._target_slope)
        pulled = self.pulled.div_(self._total[:, None]).neg_()
        gradient = pulled.addcmul_(target_rows, push[:, None])
        return gradient if self._rule.scale == 1 else gradient.mul_(self._rule.scale)

    def _log_probs(self) -> torch.Tensor:
        return (self._target_logit - self._maximum) - self._total.log()

    def statistics(self, vocabulary: int) -> tuple[torch.Tensor | None, ...]:
        log_total = self._total.log()

        def asked(name: Statistic, value: torch.Tensor) -> torch.Tensor | None:
            return value if name in self._wanted else None

        return (
            self._log_probs(),
            asked("entropy", log_total - self._weighted_distance / self._total),
            asked("log_sum_sq_probs", self._total_of_squares.log() - 2 * log_total),
            asked("mean_logits", self._sum_of_logits / vocabulary),
            asked("is_top1", self._best == self._targets),
        )


def _product(left: torch.Tensor, right: torch.Tensor, out: torch.Tensor, low: torch.Tensor | None) -> None:
    """out = left @ right in f32; low: scratch in the dtype of the factors, None when that is f32."""
    if low is None:
        torch.mm(left, right, out=out)
    elif out.is_cuda:
        torch.mm(left, right, out_dtype=torch.float32, out=out)
    else:
        out.copy_(torch.mm(left, right, out=low))


def _accumulate(total: torch.Tensor, left: torch.Tensor, right: torch.Tensor, low: torch.Tensor | None) -> None:
    """total += left @ right, total and left f32, right of the compute dtype, in which the product is made."""
    if low is None:
        total.addmm_(left, right)
        return
    low.copy_(left)
    if total.is_cuda:
        # Not addmm, whose f32 accumulator beside bf16 factors torch took only lately.
        total += torch.mm(low, right, out_dtype=torch.float32)
    else:
        total += low @ right
