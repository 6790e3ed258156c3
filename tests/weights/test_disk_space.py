"""On a file system that really is full: a tmpfs of bubblewrap's, smaller than what is written to it."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

MEBIBYTE = 1 << 20
# Prints the error and what is left on the disk.
REPORT = """
import sys
from pathlib import Path
from amigo_local.domain.errors import AmigoError
source, full = Path(sys.argv[1]), Path(sys.argv[2])
try:
    {work}
except AmigoError as error:
    print(error.message, "|", error.hint)
    print(sorted(str(path.relative_to(full)) for path in full.rglob("*")))
"""
EXPORT = (
    "from amigo_local.weights.export_plan import plan_export; from amigo_local.weights.export import export; "
    "export(plan_export(source, None, 'f16', full), full / 'out.gguf', lambda event: None)"
)
UNPACK = (
    "from amigo_local.weights.unpack import unpack; import os; (full / 'build').mkdir(); "
    "unpack(source, full / 'build', 'f32', lambda event: None)"
)


def _on_a_full_disk(work: str, source: Path, size_bytes: int) -> str:
    if not shutil.which("bwrap"):
        pytest.skip("no bubblewrap: apt-get install bubblewrap")
    place = "/mnt"
    sandbox = ["bwrap", "--ro-bind", "/", "/", "--dev", "/dev", "--proc", "/proc"]
    sandbox += ["--size", str(size_bytes), "--tmpfs", place]
    probe = subprocess.run([*sandbox, "true"], capture_output=True, text=True)
    if probe.returncode:
        pytest.skip(f"bubblewrap can't mount a small tmpfs here: {probe.stderr.strip()}")
    code = REPORT.format(work=work)
    done = subprocess.run(
        [*sandbox, "--", sys.executable, "-c", code, str(source), place], capture_output=True, text=True, check=True
    )
    return done.stdout


def test_an_export_that_fills_the_disk_says_what_it_needs_and_leaves_nothing(tiny_llama: Path) -> None:
    needed = 5_283_232  # 2.6 M weights in two bytes, vectors in four, metadata
    said = _on_a_full_disk(EXPORT, tiny_llama, 2 * MEBIBYTE)
    assert said.startswith("/mnt: the disk is full: 5.0 MiB (")
    assert f"({needed} bytes) are needed, " in said and "2.0 MiB are free now" in said
    assert "--out" in said.splitlines()[0]
    assert said.splitlines()[1] == "[]"


def test_an_unpack_that_fills_the_disk_says_what_it_needs(tiny_llama: Path) -> None:
    said = _on_a_full_disk(UNPACK, tiny_llama, 4 * MEBIBYTE)
    assert "the disk is full: " in said and "are needed" in said


def test_a_disk_that_is_large_enough_is_not_complained_about(tiny_llama: Path) -> None:
    assert _on_a_full_disk(EXPORT, tiny_llama, 16 * MEBIBYTE) == ""
