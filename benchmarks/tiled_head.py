"""The tiled head beside TRL's chunked one and beside whole logits, in the same run: error, time and memory.

    python benchmarks/tiled_head.py [errors speed decoding] [--tokens 512] [--threads 1]

On CPU, with random weights; each contender of `speed` runs in a process of its own.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))
from benchmarks.measuring import megabytes, run_python

SHAPES = {"SmolLM2-135M's": (49_152, 576), "Gemma-3-270M's": (262_208, 640)}
SEEDS = 8

# Sets up a head, warms up once, and prints seconds (the fastest of 5) and the bytes that a loss and its gradient took
# at their peak. arguments: contender, vocabulary, width, tokens, dtype, threads.
CONTENDER = """
import sys, time
import torch
from torch.nn import functional
from pathlib import Path
contender, vocabulary, width, tokens, dtype, threads = sys.argv[1:]
vocabulary, width, tokens, dtype = int(vocabulary), int(width), int(tokens), getattr(torch, dtype)
torch.set_num_threads(int(threads))
torch.manual_seed(0)
hidden = torch.randn(tokens, width).to(dtype).requires_grad_()
targets = torch.randint(0, vocabulary, (tokens,))

def resident():
    return (torch.randn(vocabulary, width) * 0.05).to(dtype)

if contender.startswith("ours"):
    from amigo_local.training.host_embedding import HostHead
    from amigo_local.training.host_table import HostTable
    from amigo_local.training.logit_rule import LogitRule
    from amigo_local.training.tiled_head import token_statistics
    cpu = torch.device("cpu")
    if contender == "ours":
        table = HostTable.of(resident())
    else:
        from amigo_local.weights.ggml_types import TYPES_BY_NAME
        from amigo_local.weights.kernels import load_kernels
        stored = contender.split()[1]
        width = width // 256 * 256 if stored == "Q6_K" else width
        hidden = hidden[:, :width].detach().requires_grad_()
        rows = (torch.randn(vocabulary, width) * 0.05).numpy()
        raw = torch.from_numpy(load_kernels(1).quantize(TYPES_BY_NAME[stored].id, rows))
        del rows
        table = HostTable(raw, stored, width, (1 << 30) if "kept" in contender else 0)
    head = HostHead(table, dtype, cpu)
    loss = lambda: -token_statistics(hidden, targets, head, LogitRule()).log_probs.sum()
elif contender == "TRL":
    from trl.kernels import ChunkedLogProbFunction
    weight = resident()
    wanted = ("log_probs",)
    loss = lambda: -ChunkedLogProbFunction.apply(hidden, weight, None, targets, 1.0, 32768, None, 1.0, wanted)[0].sum()
elif contender == "whole logits":
    weight = resident()
    loss = lambda: functional.cross_entropy((hidden @ weight.t()).float(), targets, reduction="sum")
else:
    weight = resident()
    class Rows(torch.autograd.Function):  # Liger Kernel's order: all of the vocabulary, 512 tokens at once
        @staticmethod
        def forward(ctx, hidden, weight, targets):
            total, gradient = torch.zeros(()), torch.empty_like(hidden)
            for start in range(0, hidden.shape[0], 512):
                rows = slice(start, start + 512)
                logits = functional.linear(hidden[rows], weight).float()
                wanted = targets[rows, None]
                normalizer = logits.logsumexp(dim=-1, keepdim=True)
                total += (normalizer - logits.gather(1, wanted)).sum()
                probabilities = logits.sub_(normalizer).exp_()
                probabilities.scatter_add_(1, wanted, torch.full_like(wanted, -1, dtype=probabilities.dtype))
                gradient[rows] = probabilities.to(weight.dtype) @ weight
            ctx.save_for_backward(gradient)
            return total
        @staticmethod
        def backward(ctx, outer):
            return ctx.saved_tensors[0] * outer.to(ctx.saved_tensors[0].dtype), None, None
    loss = lambda: Rows.apply(hidden, weight, targets)

def memory(name):
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith(name)).split()[1])

def once():
    hidden.grad = None
    started = time.perf_counter()
    loss().backward()
    return time.perf_counter() - started

once()
Path("/proc/self/clear_refs").write_text("5")  # the peak starts again from here
before = memory("VmRSS")
taken = min(once() for _ in range(5))
print(taken, memory("VmHWM") - before, hidden.shape[1])
"""


def speed(options: argparse.Namespace) -> None:
    """Loss and gradient of the hidden states, on the positions that are scored."""
    print(f"\n## Time and memory of loss and gradient, {options.tokens} tokens, {options.threads} thread(s)\n")
    print("| head | dtype | | seconds | of ours | memory beside the weights |\n|---|---|---|---|---|---|")
    for name, (vocabulary, width) in SHAPES.items():
        for dtype in ("bfloat16", "float32"):
            first = 0.0
            for contender in (
                *("ours", "ours, Q8_0", "ours, Q6_K", "ours, Q6_K kept"),
                *("all of the vocabulary, 512 tokens at once", "TRL", "whole logits"),
            ):
                arguments = (contender, vocabulary, width, options.tokens, dtype, options.threads)
                seconds, extra, columns = map(float, run_python(CONTENDER, *arguments).output.split())
                seconds *= width / columns  # Q6_K has rows of whole blocks of 256
                first = first or seconds
                print(f"| {name} | {dtype} | {contender} | {seconds:.2f} | ", end="")
                print(f"{seconds / first:.2f} | {megabytes(extra)} |", flush=True)


def errors(options: argparse.Namespace) -> None:
    """Against float64: of a log-probability, of the mean loss, of the gradient (relative, by norm)."""
    from trl.kernels import ChunkedLogProbFunction

    from amigo_local.training.host_embedding import HostHead
    from amigo_local.training.logit_rule import LogitRule
    from amigo_local.training.tiled_head import token_statistics
    from tests.support.host_model import host_table, whole

    vocabulary, width, tokens, tile = 16_384, 512, 128, 2048
    print(f"\n## Errors against float64, {vocabulary} x {width}, {tokens} tokens, mean of {SEEDS} seeds\n")
    print("| dtype | softcap | table | | log-probability | mean loss | gradient |\n|---|---|---|---|---|---|---|")
    for dtype in (torch.float32, torch.bfloat16):
        for softcap in (None, 30.0):
            for type_name in ("BF16", "Q6_K"):
                rule, found = LogitRule(softcap=softcap), {"ours": np.zeros(3), "TRL": np.zeros(3)}
                for seed in range(SEEDS):
                    random = torch.Generator().manual_seed(seed)
                    table = host_table(torch.randn(vocabulary, width, generator=random) * 0.05, type_name)
                    head, weight = HostHead(table, dtype, torch.device("cpu"), tile), whole(table, dtype)
                    targets = torch.randint(0, vocabulary, (tokens,), generator=random)
                    pull = 40 * torch.rand(tokens, 1, generator=random) * weight[targets].float()
                    hidden = (2 * torch.randn(tokens, width, generator=random) + pull).to(dtype).requires_grad_()
                    reference = _exact(hidden, weight, targets, softcap)
                    arguments = (weight, None, targets, 1.0, tile, softcap, 1.0, ("log_probs",))
                    for name, log_probs in (
                        ("ours", token_statistics(hidden, targets, head, rule).log_probs),
                        ("TRL", ChunkedLogProbFunction.apply(hidden, *arguments)[0]),
                    ):
                        found[name] += _errors(hidden, log_probs, reference) / SEEDS
                for name, (one, mean, gradient) in found.items():
                    kind = str(dtype).removeprefix("torch.")
                    print(f"| {kind} | {softcap} | {type_name} | {name} | {one:.2e} | {mean:.2e} | {gradient:.3e} |")


def _exact(hidden: Any, weight: Any, targets: Any, softcap: float | None) -> tuple[Any, Any]:
    double = hidden.detach().double().requires_grad_()
    logits = double @ weight.double().t()
    if softcap is not None:
        logits = softcap * torch.tanh(logits / softcap)
    log_probs = logits.log_softmax(-1).gather(1, targets[:, None])[:, 0]
    (-log_probs.mean()).backward()
    return log_probs.detach(), double.grad


def _errors(hidden: Any, log_probs: Any, reference: tuple[Any, Any]) -> Any:
    hidden.grad = None
    (-log_probs.mean()).backward()
    off = log_probs.detach().double() - reference[0]
    gradient = (hidden.grad.double() - reference[1]).norm() / reference[1].norm()
    return np.array([float(off.abs().mean()), float(off.mean().abs()), float(gradient)])


def decoding(options: argparse.Namespace) -> None:
    """Millions of weights a second, to bf16 with torch operations and to f32 with ggml's kernel."""
    from amigo_local.training.ggml_decoding import decode
    from amigo_local.weights.ggml_types import TYPES_BY_NAME
    from amigo_local.weights.kernels import load_kernels

    kernels, rows = load_kernels(1), np.random.default_rng(0).standard_normal((1024, 2560), np.float32)
    floats, halves = np.empty(rows.size, np.float32), torch.empty(rows.shape, dtype=torch.bfloat16)
    print("\n## Decoding, M weights/s, one thread\n")
    print("| type | torch operations, bf16 | ggml's kernel, f32 | |\n|---|---|---|---|")
    torch.set_num_threads(1)
    for name in ("Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "IQ4_NL", "IQ4_XS"):
        kind = TYPES_BY_NAME[name]
        raw = kernels.quantize(kind.id, rows)
        ours = _rate(partial(decode, torch.from_numpy(raw), name, rows.shape[1], torch.bfloat16, halves), rows.size)
        theirs = _rate(partial(kernels.dequantize, kind.id, raw, rows.size, floats), rows.size)
        print(f"| {name} | {ours:,.0f} | {theirs:,.0f} | {ours / theirs:.0%} |")


def _rate(work: Any, elements: int) -> float:
    taken = []
    for _ in range(8):
        started = time.perf_counter()
        work()
        taken.append(time.perf_counter() - started)
    return elements / statistics.median(taken[1:]) / 1e6


def main() -> None:
    parts = {part.__name__: part for part in (errors, speed, decoding)}
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", choices=[[], *parts], help="default: all")
    parser.add_argument("--tokens", type=int, default=512)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    for name in options.parts or parts:
        parts[name](options)


if __name__ == "__main__":
    main()
