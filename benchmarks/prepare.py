"""What `prepare` does in a second and holds in memory on synthetic rows, beside the same filters as datasets' own.

    python benchmarks/prepare.py FOLDER [--rows 1000000] [--render 20000] [--peer 100000]

Rows are made from their number alone: a request of some 60 words and a Python function of 8 to 12 lines, of which a few
are repeated, nearly repeated, broken, or hold a key or an address. Each part is measured in a process of its own, whose
whole tree is watched.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import psutil

_TEXT = (
    "the list of numbers that a caller gives is split into parts whose sums stay below some limit and each part keeps "
    "order so that joining them again yields what came in unless an item alone is larger than the limit which is an "
    "error to be raised with its index value name type and reason for people who read logs at night when nobody else "
    "can help them find out why their report has gaps between two dates or shows totals which do not add up at all"
)
_WORDS = _TEXT.split(" ")
_OPERATIONS = ("+", "-", "*", "//", "%", "&", "|", "^")
_NAMES = ("rows", "items", "values", "parts", "totals", "lines", "words", "edges", "nodes", "keys", "cells", "marks")


class Tree(NamedTuple):
    """A measured process with its children."""

    seconds: float
    peak_rss_bytes: int
    """Of all of them at one time; pages that they share are counted once for each."""
    peak_pss_bytes: int
    """The same with shared pages divided among those that share them."""
    cpu_seconds: float
    """Of all of them: what the machine's other work can't change much."""
    output: str


def rows(count: int) -> Iterator[dict[str, str]]:
    for number in range(count):
        if number % 50 == 7:
            yield _row(number - 7)  # an exact duplicate
        elif number % 50 == 11:
            row = _row(number - 11)
            yield {**row, "prompt": f"{row['prompt']} Please."}  # a near one
        else:
            yield _row(number)


def _row(number: int) -> dict[str, str]:
    state = (number * 6364136223846793005 + 1442695040888963407) % 2**64
    picks = []
    for _ in range(90):
        state = (state * 6364136223846793005 + 1442695040888963407) % 2**64
        picks.append(state >> 40)
    words = [_WORDS[pick % len(_WORDS)] for pick in picks[:52]]
    names = [f"{_NAMES[pick % len(_NAMES)]}_{pick % 1000}" for pick in picks[52:60]]
    prompt = f"Write a Python function `work_{number}({names[0]})` that does this: {' '.join(words)}."
    lines = [f"def work_{number}({names[0]}):", f"    {names[1]} = {picks[60] % 100}"]
    for step in range(picks[61] % 5 + 4):
        left, right = names[1 + step % 4], names[step % 3]
        operation = _OPERATIONS[picks[62 + step] % len(_OPERATIONS)]
        if step % 3 == 2:
            lines.append(f"    if {left} > {picks[70 + step] % 90}:\n        {left} = {left} {operation} 3")
        else:
            lines.append(f"    {names[2 + step % 3]} = {left} {operation} {picks[72 + step] % 50 + 1}  # {right}")
    lines.append(f"    return {names[1]}")
    if number % 97 == 5:
        lines[0] = lines[0].rstrip(":")
    elif number % 101 == 6:
        lines.append(f"# AKIA{picks[80] % 10**8:08d}ABCDEFGH")
    elif number % 103 == 9:
        lines.append(f"# asked by worker{number}@gmail.com")
    return {"prompt": prompt, "completion": "```python\n" + "\n".join(lines) + "\n```", "module": f"m{number % 5000}"}


def write_rows(path: Path, count: int) -> None:
    if path.is_file() and path.with_suffix(".count").is_file() and path.with_suffix(".count").read_text() == str(count):
        return
    with path.open("w", encoding="utf-8") as file:
        for row in rows(count):
            file.write(json.dumps(row) + "\n")
    path.with_suffix(".count").write_text(str(count))


def run_tree(*arguments: object) -> Tree:
    """This file with other arguments, watched ten times a second. Raises RuntimeError when it fails."""
    started, before = time.perf_counter(), _cpu_seconds()
    process = subprocess.Popen([sys.executable, __file__, *map(str, arguments)], stdout=subprocess.PIPE, text=True)
    peaks, done = [0, 0], threading.Event()

    def watch() -> None:
        while not done.wait(0.1):
            memory = [_memory(each) for each in _tree(process.pid)]
            for index in range(2):
                peaks[index] = max(peaks[index], sum(sizes[index] for sizes in memory))

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    output, _ = process.communicate()
    done.set()
    watcher.join()
    if process.returncode:
        raise RuntimeError(f"{arguments} failed")
    return Tree(time.perf_counter() - started, peaks[0], peaks[1], _cpu_seconds() - before, output)


def _cpu_seconds() -> float:
    """Of children that have ended, and of theirs."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def _tree(pid: int) -> list[psutil.Process]:
    try:
        root = psutil.Process(pid)
        return [root, *root.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def _memory(process: psutil.Process) -> tuple[int, int]:
    try:
        full = process.memory_full_info()
        return full.rss, full.pss
    except (psutil.NoSuchProcess, psutil.AccessDenied):
        return 0, 0


def _filter(path: Path, near: bool) -> dict[str, float]:
    """Reading, every filter and exact duplicates, into a spool; then near-duplicates by themselves."""
    import tempfile

    from amigo_local.data.filter_pool import STEADY, FilterPool
    from amigo_local.data.funnel import counts_of
    from amigo_local.data.gathering import SIGNATURES_FILE, Building, Gathering
    from amigo_local.data.pair_filter import FilterJob
    from amigo_local.data.reading import Reading
    from amigo_local.domain.data_source import JsonlSource
    from amigo_local.domain.recipe import DataSettings

    settings = DataSettings(sources=(JsonlSource(jsonl=str(path)),), near_duplicates=0.8 if near else None)
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        building = Building(Path(folder), "benchmark", ["rows"])
        gathering = Gathering(building, settings)
        started = time.perf_counter()
        with FilterPool(FilterJob(settings=settings), STEADY) as pool:
            gathering.read_all(lambda: Reading(emit=lambda event: None), pool, lambda event: None, STEADY)
        seconds = time.perf_counter() - started
        found = {"filter_seconds": seconds, "kept": gathering.spool.rows}
        found |= {what: count for _, what, count in counts_of(building.position.funnels, building.position.steps)}
        if near:
            from amigo_local.data.near_duplicates import near_duplicates

            started = time.perf_counter()
            found["near"] = int(near_duplicates(Path(folder) / SIGNATURES_FILE, 0.8).sum())
            found["near_seconds"] = time.perf_counter() - started
    return found


def _whole(path: Path, checkpoint: Path, limit: int) -> dict[str, float]:
    """prepare itself, rendering `limit` rows."""
    import tempfile

    from amigo_local.data.prepare import prepare
    from amigo_local.data.reading import Reading
    from amigo_local.domain.data_source import JsonlSource
    from amigo_local.domain.events import AnyEvent, Progress
    from amigo_local.domain.recipe import DataSettings

    first = last = 0.0

    def listen(event: AnyEvent) -> None:
        nonlocal first, last
        if isinstance(event, Progress) and event.label.startswith("rendering"):
            last = time.perf_counter()
            first = first or last

    settings = DataSettings(sources=(JsonlSource(jsonl=str(path), limit=limit),), near_duplicates=0.8)
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        figures = prepare(settings, checkpoint, Path(folder), lambda: Reading(emit=listen), listen)
    return {"render_seconds": last - first, "train_tokens": float(figures["train_tokens"] or 0)}


def _peer(path: Path) -> dict[str, float]:
    """The same filters over datasets.Dataset, as one would write them: two processes, then a set of keys."""
    from datasets import Dataset, disable_progress_bars

    from amigo_local.data.decontamination import load_decontamination
    from amigo_local.data.filters import Filters
    from amigo_local.data.pair import Pair
    from amigo_local.data.seen_keys import key_of
    from amigo_local.domain.recipe import DataSettings

    disable_progress_bars()
    filters = Filters(DataSettings(), load_decontamination())

    def pairs(batch: dict[str, list[str]]) -> list[Pair]:
        return [
            Pair(prompt=p, completion=c, source="") for p, c in zip(batch["prompt"], batch["completion"], strict=True)
        ]

    started = time.perf_counter()
    data = Dataset.from_json(str(path), cache_dir=str(path.parent / "peer"))
    data = data.filter(
        lambda batch: [reason is None for reason in filters.refusals(pairs(batch))],
        batched=True,
        batch_size=2000,
        num_proc=2,
        load_from_cache_file=False,
    )
    data = data.map(
        lambda batch: {"key": [str(key_of(pair)) for pair in pairs(batch)]},
        batched=True,
        batch_size=2000,
        num_proc=2,
        load_from_cache_file=False,
    )
    seen: set[str] = set()
    data = data.filter(lambda key: not (key in seen or seen.add(key)), input_columns="key", load_from_cache_file=False)
    return {"seconds": time.perf_counter() - started, "kept": len(data)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--render", type=int, default=20_000, help="render so many of them; 0: none")
    parser.add_argument("--checkpoint", type=Path, help="with the tokenizer and template to render with")
    parser.add_argument("--peer", type=int, default=100_000, help="rows for the comparison; 0: none")
    parser.add_argument("--part", choices=("filter", "near", "whole", "peer"), help=argparse.SUPPRESS)
    given = parser.parse_args()
    path = given.folder / f"rows-{given.rows}.jsonl"
    if given.part:
        parts = {
            "filter": lambda: _filter(path, near=False),
            "near": lambda: _filter(path, near=True),
            "whole": lambda: _whole(path, given.checkpoint, given.render),
            "peer": lambda: _peer(path),
        }
        print(json.dumps(parts[given.part]()))
        return
    given.folder.mkdir(parents=True, exist_ok=True)
    write_rows(path, given.rows)
    print(f"{given.rows:,} rows, {path.stat().st_size / 1e6:,.0f} MB; {len(psutil.Process().cpu_affinity())} cores")
    _print_ours(given)
    if given.peer:
        _print_peer(given.folder, given.peer)


def _print_ours(given: argparse.Namespace) -> None:
    common = (given.folder, "--rows", given.rows)
    tree = run_tree(*common, "--part", "filter")
    found = json.loads(tree.output)
    _say("all filters and exact duplicates", given.rows, found["filter_seconds"], tree)
    print("  " + ", ".join(f"{what}: {count:,}" for what, count in found.items() if what != "filter_seconds"))
    tree = run_tree(*common, "--part", "near")
    found = json.loads(tree.output)
    _say("the same with signatures", given.rows, found["filter_seconds"], tree)
    _say(f"finding {found['near']:,} near-duplicates", found["kept"], found["near_seconds"], tree)
    if given.checkpoint and given.render:
        tree = run_tree(*common, "--part", "whole", "--checkpoint", given.checkpoint, "--render", given.render)
        _say("rendering", min(given.render, given.rows), json.loads(tree.output)["render_seconds"], tree)
        _say("prepare from end to end", given.rows, tree.seconds, tree)


def _print_peer(folder: Path, count: int) -> None:
    write_rows(folder / f"rows-{count}.jsonl", count)
    ours = run_tree(folder, "--rows", count, "--part", "filter")
    found = json.loads(ours.output)
    _say("ours, fewer rows", count, found["filter_seconds"], ours)
    peer = run_tree(folder, "--rows", count, "--part", "peer")
    other = json.loads(peer.output)
    _say("datasets, the same filters", count, other["seconds"], peer)
    print(f"  kept {found['kept']:,} and {other['kept']:,}; ratio {other['seconds'] / found['filter_seconds']:.2f}")


def _say(what: str, count: int, seconds: float, tree: Tree) -> None:
    """`seconds` are of the part alone, the processor's and the memory of the whole process with its children."""
    memory = f"peak RSS {tree.peak_rss_bytes / 2**20:,.0f} MiB, shared pages once {tree.peak_pss_bytes / 2**20:,.0f}"
    speed = f"{seconds:.1f} s, {count / seconds:,.0f} rows/s"
    print(f"{what}: {speed}; in all {tree.cpu_seconds:.1f} s of processor, {memory}", flush=True)


if __name__ == "__main__":
    main()
