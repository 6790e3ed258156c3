"""Building and opening an NF4 store of Gemma-3-12B's shape, straight from a GGUF of random weights made in place.

    python benchmarks/nf4_store.py [--scratch DIR] [--model FILE]

Writes 7.4 GB of GGUF (unless --model names one) and 5.6 GB of store into --scratch. Every figure is of a process of its
own; bitsandbytes' own quantizer runs on the same weights in the same run.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
from benchmarks.measuring import megabytes, run_python
from benchmarks.twelve_b import write_twelve_b

_BUILD = """
import sys
from pathlib import Path
import msgspec
from amigo_local.training.nf4_build import build_store
from amigo_local.weights.gguf_header import read_header
from amigo_local.weights.unpack import write_config
from amigo_local.weights.weight_source import GgufWeights

source, out = GgufWeights(read_header(Path(sys.argv[1]))), Path(sys.argv[2])
out.mkdir(exist_ok=True)
write_config(source.header, out, "bf16")
told = Path(sys.argv[3]).open("ab", buffering=0) if len(sys.argv) > 3 else None
tell = lambda event: told and told.write(msgspec.json.encode(event) + b"\\n")
figures = build_store(source, "sha256:benchmark", out, tell)
print(msgspec.json.encode(figures).decode())
"""
_IMPORTS = "import torch, bitsandbytes, transformers; from transformers import AutoModelForCausalLM"
_OPEN = """
import sys, time, resource
from pathlib import Path
import torch, bitsandbytes, transformers
from amigo_local.training.nf4_model import build_model
from amigo_local.training.nf4_store import open_store

def seconds(work):
    started, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_SELF)
    made = work()
    after = resource.getrusage(resource.RUSAGE_SELF)
    return time.perf_counter() - started, after.ru_minflt + after.ru_majflt - before.ru_minflt - before.ru_majflt, made

opened = [seconds(lambda: open_store(Path(sys.argv[1]))) for _ in range(9)]
milliseconds, faults, store = min(opened, key=lambda it: it[0])
print(f"open: {1e3 * milliseconds:.2f} ms, first time {1e3 * opened[0][0]:.2f} ms, {faults} page faults")
taken, faults, model = seconds(lambda: build_model(store, torch.bfloat16))
print(f"model over it: {taken:.2f} s, {faults} page faults")
"""
_PEER = """
import sys, time
from pathlib import Path
import numpy as np
import torch
import bitsandbytes.functional as F
from concurrent.futures import ThreadPoolExecutor
from amigo_local.training.nf4_quantization import TensorQuantizer, quantizing_threads
from amigo_local.weights.gguf_header import read_header
from amigo_local.weights.weight_source import GgufWeights, read_whole

source = GgufWeights(read_header(Path(sys.argv[1])))
whole = read_whole(source, "model.layers.0.mlp.down_proj.weight")
weights = torch.from_numpy(whole)
for threads in (1, torch.get_num_threads()):
    torch.set_num_threads(threads)
    F.quantize_4bit(weights[:64].bfloat16(), compress_statistics=True, quant_type="nf4")
    started = time.perf_counter()
    theirs, state = F.quantize_4bit(weights.bfloat16(), compress_statistics=True, quant_type="nf4")
    print(f"bitsandbytes, {threads} threads: {weights.numel() / (time.perf_counter() - started) / 1e6:.0f} M weights/s")

def ours(pool, ahead):
    packed = torch.empty(weights.numel() // 2, dtype=torch.uint8)
    quantizer = TensorQuantizer(weights.numel(), packed, pool, ahead)
    for start in range(0, len(whole), 136):
        quantizer.feed(whole[start : start + 136])
    return packed, quantizer.finish()

with quantizing_threads() as pool, ThreadPoolExecutor(1) as single:
    for name, used in (("1 thread", single), ("all cores", pool)):
        ours(used, 3)
        started = time.perf_counter()
        packed, scales = ours(used, 3)
        rate = weights.numel() / (time.perf_counter() - started) / 1e6
        print(f"ours with its error measured, {name}: {rate:.0f} M weights/s")
same = torch.equal(packed, theirs.view(-1)) and torch.equal(scales.codes, state.absmax)
print("same bytes:", same and torch.equal(scales.scales, state.state2.absmax))
state.dtype = torch.float32
decoded = F.dequantize_4bit(theirs, state)
exact = float((decoded - weights).double().norm() / weights.double().norm())
print(f"error told {scales.error:.6%}, of the decoded tensor {exact:.6%}")
"""


def digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]


def killed_and_resumed(model: Path, out: Path, trail: Path, after_bytes: float) -> tuple[float, float]:
    """Seconds of a build that gets SIGKILL once it says that it has done so much, and of the one that finishes it."""
    command = [sys.executable, "-c", _BUILD, str(model), str(out), str(trail)]
    started = time.perf_counter()
    child = subprocess.Popen(command, stdout=subprocess.DEVNULL, cwd=Path(__file__).parents[1])
    while _bytes_done(trail) < after_bytes:
        time.sleep(0.2)
        if child.poll() is not None:
            raise RuntimeError("the build ended before it was killed")
    child.send_signal(signal.SIGKILL)
    child.wait()
    cut = time.perf_counter() - started
    return cut, run_python(_BUILD, model, out).seconds


def _bytes_done(trail: Path) -> float:
    lines = trail.read_text().splitlines(keepends=True) if trail.exists() else []
    told = [line for line in lines if "quantizing" in line and line.endswith("\n")]
    return float(json.loads(told[-1])["done"]) if told else 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scratch", type=Path, help="default: a temporary folder")
    parser.add_argument("--model", type=Path, help="a GGUF to use instead of one made here")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.scratch, prefix="nf4-store-") as folder:
        scratch = Path(folder)
        model = arguments.model or scratch / "twelve-b.gguf"
        if arguments.model is None:
            write_twelve_b(model, None, scratch / "adapter")
        print(f"\n## NF4 store of {model.name}, {model.stat().st_size / 1e9:.2f} GB\n")
        print(run_python(_PEER, model).output)
        imported = run_python(_IMPORTS)
        print(f"\nimports alone: {imported.seconds:.1f} s, {megabytes(imported.peak_rss_bytes)}")
        built = run_python(_BUILD, model, scratch / "store", watched=scratch)
        print(f"build: {built.seconds:.0f} s, peak RSS {megabytes(built.peak_rss_bytes)}, ", end="")
        print(f"peak disk {megabytes(built.peak_disk_bytes)}\n{built.output}")
        opened = run_python(_OPEN, scratch / "store")
        print(f"{opened.output}; peak RSS with imports {megabytes(opened.peak_rss_bytes)}")
        whole = digest(scratch / "store" / "layers.nf4")
        nbytes = (scratch / "store" / "layers.nf4").stat().st_size
        shutil.rmtree(scratch / "store")
        cut, resumed = killed_and_resumed(model, scratch / "again", scratch / "trail", nbytes / 2)
        same = digest(scratch / "again" / "layers.nf4") == whole
        print(f"killed after {cut:.0f} s, finished in {resumed:.0f} s more; the same bytes: {same}")


if __name__ == "__main__":
    main()
