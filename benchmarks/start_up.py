"""Start-up time of `amigo-local --help` beside the bare interpreter and beside importing torch.

`python benchmarks/start_up.py [RUNS]`; medians of whole processes, run in turn so that a drifting
machine touches all of them alike.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from pathlib import Path

COMMANDS = {
    "amigo-local --help": [str(Path(sys.executable).with_name("amigo-local")), "--help"],
    "amigo-local runs ls (empty home)": [
        str(Path(sys.executable).with_name("amigo-local")),
        "runs",
        "ls",
        "--home",
        "/nonexistent",
    ],
    "python -c pass": [sys.executable, "-c", "pass"],
    "python -c 'import click, msgspec'": [sys.executable, "-c", "import click, msgspec"],
    "ollama client: python -c 'import ollama'": [sys.executable, "-c", "import ollama"],
    "python -c 'import torch'": [sys.executable, "-c", "import torch"],
}


def main() -> None:
    runs = int(sys.argv[1]) if len(sys.argv) > 1 else 21
    taken: dict[str, list[float]] = {name: [] for name in COMMANDS}
    for i in range(runs + 1):
        for name, command in COMMANDS.items():
            started = time.perf_counter()
            subprocess.run(command, capture_output=True, check=True)
            if i:  # the first fills the page cache
                taken[name].append(1000 * (time.perf_counter() - started))
    base = statistics.median(taken["python -c pass"])
    print(f"| command | median ms | min | max | over bare Python |\n|---|---|---|---|---|   ({runs} runs each)")
    for name, values in taken.items():
        median = statistics.median(values)
        print(f"| `{name}` | {median:.0f} | {min(values):.0f} | {max(values):.0f} | {median / base:.1f}× |")


if __name__ == "__main__":
    main()
