"""Runs Python code in a process of its own and says how long it took and what it held at its peak."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import NamedTuple

# Of the process's own memory map: ru_maxrss would also count what its parent held when it was forked.
_PEAK = """
import atexit
def _say_peak():
    with open("/proc/self/status") as status:
        print("PEAK", next(line for line in status if line.startswith("VmHWM")).split()[1], flush=True)
atexit.register(_say_peak)
"""


class Measured(NamedTuple):
    seconds: float
    peak_rss_bytes: int
    peak_disk_bytes: int
    """The most that lay in `watched` at one time, over what lay there before."""
    output: str


def run_python(code: str, *arguments: object, watched: Path | None = None) -> Measured:
    """Raises RuntimeError with the end of stderr when the code fails."""
    before, peak_disk, done = _size(watched), 0, threading.Event()

    def watch() -> None:
        nonlocal peak_disk
        while not done.wait(0.05):
            peak_disk = max(peak_disk, _size(watched) - before)

    watcher = threading.Thread(target=watch, daemon=True)
    with tempfile.NamedTemporaryFile("w", suffix=".py") as script:
        script.write(_PEAK + code)
        script.flush()
        started = time.perf_counter()
        watcher.start()
        command = [sys.executable, script.name, *map(str, arguments)]
        finished = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[1])
        seconds = time.perf_counter() - started
    done.set()
    watcher.join()
    if finished.returncode:
        raise RuntimeError(finished.stderr[-2000:])
    lines = finished.stdout.splitlines()
    peak_kib = next(int(line.split()[1]) for line in reversed(lines) if line.startswith("PEAK "))
    output = "\n".join(line for line in lines if not line.startswith("PEAK "))
    return Measured(seconds, peak_kib * 1024, max(peak_disk, _size(watched) - before), output)


def _size(directory: Path | None) -> int:
    if directory is None:
        return 0
    total = 0
    for path in directory.rglob("*"):
        try:
            stat = path.stat()
        except FileNotFoundError:
            continue  # removed while we looked
        total += 0 if path.is_dir() else stat.st_blocks * 512  # what it takes, not what it claims: files may be sparse
    return total


def megabytes(size: float) -> str:
    return f"{size / 1e6:,.0f} MB"
