"""What each stage of `amigo-local demo` took: time, peak RAM, figures.

`python benchmarks/demo.py` runs it on an empty home first; `python benchmarks/demo.py JOURNAL` reads
the journal of a run that was made already (HOME/runs/ID/journal.jsonl).
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path

from amigo_local.domain.events import MetricLogged, Record, RunFinished, StageFinished
from amigo_local.domain.units import format_seconds, format_size
from amigo_local.engine.journal import read_journal


def summarize(records: Iterable[Record]) -> None:
    """Prints Markdown tables."""
    rows, figures, speeds, total = [], [], [], 0.0
    for record in records:
        event = record.event
        if isinstance(event, MetricLogged) and "tokens_per_second" in event.values:
            speeds.append(event.values["tokens_per_second"])
        if isinstance(event, RunFinished):
            total = event.elapsed_seconds
        if isinstance(event, StageFinished):
            size = format_size(event.artifact.size_bytes) if event.artifact else "—"
            took, peak = format_seconds(event.elapsed_seconds), format_size(event.peak_rss_bytes)
            rows.append(f"| {record.stage} | {took} | {peak} | {size} |")
            figures += [f"| {record.stage} | {name} | {value} |" for name, value in event.figures.items()]
    print(f"the whole demo: {format_seconds(total)}")
    print("\n| stage | time | peak RSS | artifact |\n|---|---|---|---|", *rows, sep="\n")
    if speeds:
        print(f"\ntraining: median {statistics.median(speeds):.0f} tok/s over {len(speeds)} steps")
    print("\n| stage | figure | value |\n|---|---|---|", *figures, sep="\n")


def run_demo(home: Path) -> Path:
    """Runs it, showing its plain lines; returns its journal."""
    subprocess.run([str(Path(sys.executable).with_name("amigo-local")), "demo", "--home", str(home)], check=True)
    return next((home / "runs").glob("*/journal.jsonl"))


if __name__ == "__main__":
    if len(sys.argv) > 1:
        summarize(read_journal(Path(sys.argv[1])))
    else:
        with tempfile.TemporaryDirectory() as folder:
            summarize(list(read_journal(run_demo(Path(folder)))))
