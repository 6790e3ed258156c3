"""Runs `amigo-local demo` on an empty home and prints what each stage took: time, peak RAM, figures.

`python benchmarks/demo.py [HOME]`: without HOME a temporary folder is used and removed.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from pathlib import Path

from amigo_local.domain.events import MetricLogged, StageFinished, decode_record
from amigo_local.domain.units import format_seconds, format_size


def main(home: Path) -> int:
    command = [str(Path(sys.executable).with_name("amigo-local")), "demo", "--json", "--home", str(home)]
    started = time.monotonic()
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout
    rows, figures, speeds = [], [], []
    for line in process.stdout:
        record = decode_record(line)
        if isinstance(record.event, MetricLogged) and "tokens_per_second" in record.event.values:
            speeds.append(record.event.values["tokens_per_second"])
        if isinstance(record.event, StageFinished):
            event = record.event
            size = format_size(event.artifact.size_bytes) if event.artifact else "—"
            took, peak = format_seconds(event.elapsed_seconds), format_size(event.peak_rss_bytes)
            rows.append(f"| {record.stage} | {took} | {peak} | {size} |")
            figures += [f"| {record.stage} | {name} | {value} |" for name, value in event.figures.items()]
    code = process.wait()
    print(f"demo: exit {code}, {format_seconds(time.monotonic() - started)} in all")
    print("\n| stage | time | peak RSS | artifact |\n|---|---|---|---|", *rows, sep="\n")
    if speeds:
        print(f"\ntraining: median {sorted(speeds)[len(speeds) // 2]:.0f} tok/s")
    print("\n| stage | figure | value |\n|---|---|---|", *figures, sep="\n")
    return code


if __name__ == "__main__":
    if len(sys.argv) > 1:
        sys.exit(main(Path(sys.argv[1])))
    with tempfile.TemporaryDirectory() as folder:
        sys.exit(main(Path(folder)))
