"""Log-probabilities and gradients of the tiled head, against float64 and TRL's chunked head."""

from __future__ import annotations

from typing import Any, NamedTuple

import pytest
import torch

from amigo_local.training.copy_engine import ThreadedEngine
from amigo_local.training.host_embedding import HostHead
from amigo_local.training.logit_rule import LogitRule
from amigo_local.training.tiled_head import Statistic, TokenStatistics, token_statistics
from tests.support.host_model import CPU, StreamedTable, host_table, whole
from tests.support.storage_watch import StorageWatch

VOCABULARY, WIDTH, TOKENS, TILE = 3000, 256, 60, 512
EVERYTHING: tuple[Statistic, ...] = ("entropy", "log_sum_sq_probs", "mean_logits", "is_top1")


class Case(NamedTuple):
    hidden: torch.Tensor
    targets: torch.Tensor
    head: HostHead
    weight: torch.Tensor
    """What the head's table decodes to."""


def a_case(dtype: torch.dtype, seed: int = 0, type_name: str = "BF16", tokens: int = TOKENS) -> Case:
    """Targets from unlikely to nearly certain, as in training."""
    random = torch.Generator().manual_seed(seed)
    table = host_table(torch.randn(VOCABULARY, WIDTH, generator=random) * 0.05, type_name, StreamedTable)
    weight = whole(table, dtype)
    targets = torch.randint(0, VOCABULARY, (tokens,), generator=random)
    pull = 60 * torch.rand(tokens, 1, generator=random)
    hidden = (3 * torch.randn(tokens, WIDTH, generator=random) + pull * weight[targets].float()).to(dtype)
    return Case(hidden.requires_grad_(), targets, HostHead(table, dtype, CPU, TILE), weight)


def ours(case: Case, rule: LogitRule, statistics: tuple[Statistic, ...] = (), at_once: int = 16 * TILE) -> Any:
    return token_statistics(case.hidden, case.targets, case.head, rule, statistics, at_once)


def trls(case: Case, rule: LogitRule, statistics: tuple[str, ...] = ()) -> TokenStatistics:
    from trl.kernels import ChunkedLogProbFunction

    wanted = ("log_probs", *statistics)
    found = ChunkedLogProbFunction.apply(
        case.hidden, case.weight, None, case.targets, 1.0, TILE, rule.softcap, rule.scale, wanted
    )
    return TokenStatistics(*found)


def exact(case: Case, rule: LogitRule) -> tuple[torch.Tensor, torch.Tensor]:
    """float64: (log_probs, the gradient of their negative mean)."""
    hidden = case.hidden.detach().double().requires_grad_()
    logits = rule.scale * hidden @ case.weight.double().t()
    if rule.softcap is not None:
        logits = rule.softcap * torch.tanh(logits / rule.softcap)
    log_probs = logits.log_softmax(-1).gather(1, case.targets[:, None])[:, 0]
    (-log_probs.mean()).backward()
    assert hidden.grad is not None
    return log_probs.detach(), hidden.grad


def errors(case: Case, log_probs: torch.Tensor, reference: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    """(mean error of a log-probability, relative error of the gradient)."""
    case.hidden.grad = None
    (-log_probs.mean()).backward()
    assert case.hidden.grad is not None
    of_gradient = (case.hidden.grad.double() - reference[1]).norm() / reference[1].norm()
    return torch.stack(((log_probs.detach().double() - reference[0]).abs().mean(), of_gradient))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("softcap", [None, 30.0])
@pytest.mark.parametrize("type_name", ["BF16", "Q6_K"])
def test_errors_against_float64_are_no_larger_than_those_of_trls_chunked_head(
    dtype: torch.dtype, softcap: float | None, type_name: str
) -> None:
    rule = LogitRule(softcap=softcap)
    our_errors, their_errors = torch.zeros(2), torch.zeros(2)
    for seed in range(5):
        case = a_case(dtype, seed, type_name)
        reference = exact(case, rule)
        our_errors += errors(case, ours(case, rule).log_probs, reference)
        their_errors += errors(case, trls(case, rule).log_probs, reference)
    # In bf16 both round the same logits, which is all there is to the error of a log-probability.
    assert our_errors[0] <= 1.001 * their_errors[0]
    assert our_errors[1] <= their_errors[1]
    assert (our_errors / 5 < torch.tensor([1e-5, 1e-5] if dtype == torch.float32 else [2e-2, 1e-2])).all()


@pytest.mark.parametrize("rule", [LogitRule(), LogitRule(softcap=5.0), LogitRule(scale=0.3, softcap=5.0)])
def test_the_gradient_is_what_finite_differences_say(rule: LogitRule) -> None:
    """Of a sum with weights of both signs, as DPO's: along random directions, in float64."""
    case = a_case(torch.float32)
    weights = torch.randn(TOKENS, generator=torch.Generator().manual_seed(1))
    (ours(case, rule).log_probs * weights).sum().backward()
    gradient, step = case.hidden.grad, 1e-5
    assert gradient is not None
    for seed in range(5):
        direction = torch.randn(TOKENS, WIDTH, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        ends = [
            (exact(case._replace(hidden=case.hidden + side * step * direction), rule)[0] * weights).sum()
            for side in (1, -1)
        ]
        torch.testing.assert_close((gradient * direction).sum(), (ends[0] - ends[1]) / (2 * step), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("rule", [LogitRule(), LogitRule(scale=0.5, softcap=10.0)])
def test_statistics_are_trls(dtype: torch.dtype, rule: LogitRule) -> None:
    case = a_case(dtype)
    found, expected = ours(case, rule, EVERYTHING), trls(case, rule, EVERYTHING)
    for name, value in found._asdict().items():
        assert not (value.requires_grad and name != "log_probs")
        if name == "is_top1":
            assert torch.equal(value, expected.is_top1) and 0 < value.sum() < TOKENS
        else:
            torch.testing.assert_close(value, getattr(expected, name), rtol=1e-4, atol=2e-5)


def test_only_what_is_asked_for_is_computed() -> None:
    found = ours(a_case(torch.float32), LogitRule(), ("mean_logits",))
    assert found.mean_logits is not None
    assert found.entropy is found.log_sum_sq_probs is found.is_top1 is None


def test_of_equal_logits_the_first_is_the_most_likely() -> None:
    """As argmax: within a tile and across tiles."""
    weight = torch.zeros(40, 32)
    weight[[3, 5, 25]] = 1.0
    head = HostHead(host_table(weight, "F32"), torch.float32, CPU, tile_rows=10)
    targets = torch.tensor([3, 5, 25, 0])
    found = token_statistics(torch.ones(4, 32), targets, head, LogitRule(), ("is_top1",))
    assert found.is_top1 is not None
    assert found.is_top1.tolist() == [True, False, False, False]


@pytest.mark.parametrize("tile_rows", [70, 3000, 10_000])
@pytest.mark.parametrize("at_once", [1, 5000, 1 << 22])
def test_the_result_does_not_depend_on_the_tiles(tile_rows: int, at_once: int) -> None:
    case = a_case(torch.float32, tokens=9)
    reference = exact(case, LogitRule())
    case.head.tile_rows = tile_rows
    log_probs = ours(case, LogitRule(), at_once=at_once).log_probs
    assert (errors(case, log_probs, reference) < 1e-5).all()


def test_tiles_may_arrive_late() -> None:
    case = a_case(torch.bfloat16, type_name="Q6_K")
    on_time = ours(case, LogitRule())
    case.head.engine = ThreadedEngine(late=1.0)
    assert torch.equal(ours(case, LogitRule()).log_probs, on_time.log_probs)
    case.head.engine.close()


@pytest.mark.parametrize("statistics", [(), EVERYTHING])
@pytest.mark.parametrize("rule", [LogitRule(), LogitRule(softcap=30.0)])
def test_logits_never_exist(statistics: tuple[Statistic, ...], rule: LogitRule) -> None:
    """Not in f32, not in bf16, not in the backward pass; no tensor is larger than a tile of the vocabulary."""
    case = a_case(torch.bfloat16, tokens=200)
    at_once = 64 * TILE
    with StorageWatch(case.head.table.raw, case.hidden) as watch:
        (-ours(case, rule, statistics, at_once).log_probs.sum()).backward()
    assert watch.largest_elements <= 2 * TILE * WIDTH < 200 * VOCABULARY // 2  # a raw tile, counted in bytes
    per_logit = 4 + 2 + 4 * (rule.softcap is not None) + 4 * ("entropy" in statistics)
    tiles, gradient = 3 * TILE * WIDTH * 2, 200 * WIDTH * (4 + 2 + 2)
    assert watch.peak_bytes < 1.25 * (per_logit * at_once + tiles + gradient)


def test_without_a_gradient_its_buffer_is_not_made() -> None:
    case = a_case(torch.float32, type_name="F32", tokens=300)
    peaks = []
    for wanted in (True, False):
        with StorageWatch(case.head.table.raw, case.hidden) as watch, torch.set_grad_enabled(wanted):
            found = ours(case, LogitRule()).log_probs
        assert found.requires_grad is wanted
        peaks.append(watch.peak_bytes)
        del found
    assert peaks[0] - peaks[1] > 0.9 * 300 * WIDTH * 4


def test_no_tokens_give_a_zero_that_can_be_differentiated() -> None:
    case = a_case(torch.float32, tokens=0)
    found = ours(case, LogitRule(), EVERYTHING)
    assert all(value.shape == (0,) for value in found)
    found.log_probs.sum().backward()
    assert case.hidden.grad is not None and case.hidden.grad.shape == (0, WIDTH)


def test_within_autocast_products_are_made_in_its_dtype() -> None:
    case = a_case(torch.float32)
    in_bf16 = a_case(torch.bfloat16)._replace(hidden=case.hidden.detach().bfloat16())
    with torch.autocast("cpu", torch.bfloat16):
        found = ours(case, LogitRule()).log_probs
    assert torch.equal(found, ours(in_bf16, LogitRule()).log_probs)
    assert not torch.allclose(found, ours(case, LogitRule()).log_probs, atol=1e-5)
    found.sum().backward()
    assert case.hidden.grad is not None and case.hidden.grad.dtype == torch.float32


def test_a_second_backward_pass_gives_the_same_gradient() -> None:
    case = a_case(torch.float32)
    loss = ours(case, LogitRule()).log_probs.sum()
    gradients = [torch.autograd.grad(loss, case.hidden, retain_graph=True)[0] for _ in range(2)]
    assert torch.equal(*gradients)


@pytest.mark.gpu
@pytest.mark.parametrize("softcap", [None, 30.0])
@pytest.mark.parametrize("type_name", ["BF16", "Q6_K"])
def test_on_a_card_errors_are_no_larger_than_those_of_trls_kernels(softcap: float | None, type_name: str) -> None:
    from amigo_local.training.copy_engine import CopyEngine
    from amigo_local.training.cuda_engine import CudaEngine

    rule, card = LogitRule(softcap=softcap), torch.device("cuda", 0)
    engine: CopyEngine = CudaEngine(card)
    our_errors, their_errors = torch.zeros(2), torch.zeros(2)
    for seed in range(8):
        on_host = a_case(torch.bfloat16, seed, type_name)
        reference = tuple(value.to(card) for value in exact(on_host, rule))
        head = HostHead(on_host.head.table, torch.bfloat16, card, TILE, engine)
        hidden = on_host.hidden.detach().to(card).requires_grad_()
        case = Case(hidden, on_host.targets.to(card), head, on_host.weight.to(card))
        our_errors += errors(case, ours(case, rule).log_probs, reference).cpu()
        their_errors += errors(case, trls(case, rule).log_probs, reference).cpu()
    engine.close()
    assert (our_errors <= 1.001 * their_errors).all()
