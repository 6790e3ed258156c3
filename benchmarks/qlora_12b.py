"""Gemma-3-12B's QLoRA on a card that is held to 6 GiB: peaks, speed and copies against the plan, and the peer.

    python benchmarks/qlora_12b.py --vram 6GiB [--minutes 25] [--scratch DIR] [--json FILE]
    python benchmarks/qlora_12b.py --small      # the same code in a minute, on a processor if there is no card

Random weights of the true shape are made in --scratch once: 6.4 GB, and 7.6 GB more for the peer. Every measurement is
a process of its own; its result is kept in --scratch at once, so that the same command goes on where it was cut or ran
out of --minutes. Prints the tables of docs/measurements.md.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from datetime import date
from pathlib import Path

import msgspec
import platformdirs

sys.path.insert(0, str(Path(__file__).parents[1]))
from amigo_local.domain.units import format_seconds, parse_size
from amigo_local.stages._shapes import checkpoint_shape
from benchmarks.qlora_12b_card import CardAbout, about_card
from benchmarks.qlora_12b_records import Job, Measurement, Method, Results, Setup, Side, Task
from benchmarks.qlora_12b_store import config_of, make_peer_checkpoint, make_store
from benchmarks.qlora_12b_tables import report

SHAPE = "gemma-3-12b"
TOKENS = (2048, 1024, 512, 4096, 256)
"""Of the sweep, those that a target is about first."""
REPETITIONS = 3
FIRST_GUESS_SECONDS = 60.0  # of a process, before one like it has run
_CHILD = Path(__file__).with_name("qlora_12b_child.py")


def schedule() -> Iterator[Task]:
    """By importance. Streamed and resident take turns, and begin in turns."""

    def pair(tokens: int, method: Method = "sft", rank: int = 32, repetition: int = 0) -> Iterator[Task]:
        sides: tuple[Side, Side] = ("streamed", "resident") if repetition % 2 == 0 else ("resident", "streamed")
        for side in sides:
            yield Task(side=side, method=method, tokens=tokens, rank=rank, repetition=repetition)

    yield Task(side="streamed", tokens=2048)
    yield Task(side="peer", tokens=2048)
    for tokens in TOKENS:
        yield from pair(tokens)
    yield from pair(2048, "dpo")
    yield Task(side="peer uncapped", tokens=2048)
    yield from pair(2048, rank=16)
    yield Task(side="streamed", tokens=2048, samples=1)
    yield Task(side="streamed", tokens=2048, probe=True)
    for tokens in TOKENS:
        yield from pair(tokens, repetition=1)
    for tokens in (512, 1024):
        yield from pair(tokens, "dpo")
        yield from pair(tokens, rank=16)
        yield Task(side="streamed", tokens=tokens, staging="pinned")
    for repetition in range(2, REPETITIONS):
        for tokens in TOKENS:
            yield from pair(tokens, repetition=repetition)
    for tokens in (4096, 256):
        yield from pair(tokens, "dpo")
        yield from pair(tokens, rank=16)
    for tokens in TOKENS:
        yield from pair(tokens, "dpo", rank=16)
    yield Task(side="peer uncapped", tokens=512)


def small_schedule() -> Iterator[Task]:
    """One of each kind."""
    yield Task(side="streamed", tokens=128, rank=4)
    yield Task(side="resident", tokens=128, rank=4)
    yield Task(side="streamed", method="dpo", tokens=128, rank=4, staging="pinned")
    yield Task(side="peer", tokens=128, rank=4)


def unique(tasks: Iterator[Task]) -> list[Task]:
    return list(dict.fromkeys(tasks))


def run(setup: Setup, tasks: list[Task], results: Results, deadline: float) -> list[Task]:
    """Measures what there is time for; returns the rest."""
    left_out = []
    for number, task in enumerate(tasks, start=1):
        remaining = deadline - time.monotonic()
        if (results.expected_seconds(task) or FIRST_GUESS_SECONDS) > remaining:
            left_out.append(task)
            continue
        say(f"{number} of {len(tasks)}: {task}")
        try:
            found = in_own_process(setup, task, remaining)
        except subprocess.TimeoutExpired:
            left_out.append(task)
            continue
        results.add(found)
        rate = f"{found.tokens_per_second:,.0f} tok/s, " if found.steps else ""
        say(f"    {found.outcome} {found.phase} {rate}{format_seconds(found.process_seconds)} {found.message[:300]}")
    return left_out


def in_own_process(setup: Setup, task: Task, timeout: float) -> Measurement:
    """Raises TimeoutExpired. A process that dies without a word is a result as well."""
    started = time.monotonic()
    job = msgspec.json.encode(Job(setup, task)).decode()
    child = subprocess.run([sys.executable, str(_CHILD), job], capture_output=True, timeout=timeout)
    seconds = round(time.monotonic() - started, 1)
    if child.stdout:
        return msgspec.structs.replace(msgspec.json.decode(child.stdout, type=Measurement), process_seconds=seconds)
    message = f"exit {child.returncode}: {child.stderr.decode(errors='replace')[-1500:]}"
    return Measurement(task=task, card=setup.card, outcome="failed", message=message, process_seconds=seconds)


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def about(setup: Setup, card: CardAbout | None, results: Results) -> Iterator[str]:
    yield f"`python benchmarks/qlora_12b.py --vram {setup.vram} --ram {setup.ram}`, {date.today()}"
    yield ""
    if setup.shape is None:
        yield f"**A small model on a {'card' if card else 'processor'}: that the benchmark works, and no measurement.**"
        yield ""
    if card is not None:
        links = " and ".join(sorted({one.link for one in results.all if one.link}))
        yield (
            f"{card.name} ({card.memory}, power limit {card.power_limit}), driver {card.driver}, "
            f"{card.link_at_most} at most, {links or 'unknown'} when just used."
        )
    yield "; ".join(sorted({one.libraries for one in results.all if one.libraries}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--vram", default="6GiB", help="of the card that is stood in for (6GiB)")
    parser.add_argument("--ram", default="16GiB", help="of the machine that is stood in for (16GiB)")
    parser.add_argument("--minutes", type=float, default=25, help="begin nothing that would not end by then (25)")
    parser.add_argument("--scratch", type=Path, help="folder for weights and results; kept, and used again")
    parser.add_argument("--json", type=Path, help="write everything that was measured to this file")
    parser.add_argument("--small", action="store_true", help="a small model and one measurement of each kind")
    options = parser.parse_args()
    deadline = time.monotonic() + 60 * options.minutes
    parse_size(options.vram), parse_size(options.ram)
    card = about_card()
    if card is None and not options.small:
        parser.error("there is no card that nvidia-smi sees; --small runs the same code on the processor")
    # Not where temporary files go, which may be memory: 14 GB of it.
    kept = Path(tempfile.gettempdir()) if options.small else platformdirs.user_cache_path("amigo-local")
    scratch = options.scratch or kept / f"qlora-{'small' if options.small else '12b'}"
    scratch.mkdir(parents=True, exist_ok=True)
    setup = Setup(
        scratch=str(scratch.absolute()),
        shape=None if options.small else SHAPE,
        vram=options.vram,
        ram=options.ram,
        card=card.name if card else "processor",
        steps=2 if options.small else 4,
        seconds=5.0 if options.small else 60.0,
    )
    tasks = unique(small_schedule() if options.small else schedule())
    say(f"weights of random numbers in {scratch}")
    store = make_store(config_of(setup.shape), scratch)
    make_peer_checkpoint(store, scratch)
    results = Results(scratch / f"results-{options.vram}-{options.ram}.jsonl", setup.card)
    left_out = run(setup, results.open_tasks(tasks), results, deadline)
    print("\n".join([*about(setup, card, results), *report(results.all, setup, checkpoint_shape(store))]))
    if left_out:
        print(f"\nLeft out for want of time ({len(left_out)} of {len(tasks)}), and made by the same command:")
        print("; ".join(map(str, left_out)))
    if options.json:
        whole = {"date": str(date.today()), "card": card, "setup": setup, "results": results.all}
        options.json.write_bytes(msgspec.json.format(msgspec.json.encode(whole)) + b"\n")


if __name__ == "__main__":
    main()
