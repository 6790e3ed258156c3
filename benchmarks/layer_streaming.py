"""Streamed against resident layers on a tiny Gemma 3 on CPU: how many losses, gradients and weights are bit-identical.

    python benchmarks/layer_streaming.py [--quick]

Prints the tables of docs/measurements.md. The resident side is transformers, bitsandbytes, PEFT and TRL by themselves.
The engines copy as late as their order allows, now and then late, or at once; see tests/support/streaming_proof.py.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))
from amigo_local.training.copy_engine import SyncEngine, ThreadedEngine
from amigo_local.training.layer_streaming import LayerStreamer, spread_evenly
from amigo_local.training.process import prepare_process, quiet_and_offline
from tests.support import streaming_proof as proof
from tests.support.quantized_model import LAYERS, load_nf4, write_tiny_gemma
from tests.support.streaming_proof import Comparison, compare, streaming
from tests.support.trl_runs import run_dpo, run_sft

NONE = Comparison(0, 0)


class Bench:
    """One tiny model, its packs, and a folder for what trainers write."""

    def __init__(self, folder: Path, quick: bool) -> None:
        self.folder, self.quick = folder, quick
        self.base = write_tiny_gemma(folder / "base")
        self.packs = proof.packs_of(self.base)
        self.resident = {dora: self._resident(dora) for dora in (False, True)}

    def _resident(self, dora: bool) -> proof.Record:
        return proof.train_steps(proof.adapted(self.base, "none", dora=dora))

    def plain(self, recompute: proof.Recompute, *, dora: bool = False) -> tuple[int, Comparison]:
        """(runs, comparisons) of every engine, 1 to 3 slots, and all, about half or one of the layers streamed."""
        runs, total = 0, NONE
        for engine in list(proof.ENGINES)[3 if self.quick else 0 :]:
            for slots in (1, 2, 3):
                for streamed in (1, 3, LAYERS):
                    model = proof.adapted(self.base, recompute, dora=dora)
                    kept = tuple(spread_evenly(LAYERS, streamed))
                    with streaming(model, self.packs, proof.ENGINES[engine](), resident=kept, slots=slots):
                        total += compare(self.resident[dora], proof.train_steps(model))
                    runs += 1
        return runs, total

    def control(self, engine: Callable[[], Any], kind: type[LayerStreamer], slots: int) -> Comparison:
        model = proof.adapted(self.base, "non-reentrant")
        with streaming(model, self.packs, engine(), slots=slots, kind=kind):
            return compare(self.resident[False], proof.train_steps(model))

    def under_trl(
        self, run: Callable[[Any, Path], proof.Record], model: Callable[[], Any], name: str
    ) -> tuple[int, Comparison]:
        expected = run(model(), self.folder / name)
        runs, total = 0, NONE
        for engine in list(proof.ENGINES)[3 if self.quick else 0 :]:
            for slots, kept in ((1, ()), (2, ()), (3, (1, 4))):
                streamed = model()
                with streaming(streamed, self.packs, proof.ENGINES[engine](), slots=slots, resident=kept):
                    total += compare(expected, run(streamed, self.folder / name))
                runs += 1
        return runs, total


def row(name: str, runs: int, comparison: Comparison) -> None:
    print(f"| {name} | {runs} | {comparison.equal:,} of {comparison.total:,} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="two engines instead of five")
    quick = parser.parse_args().quick
    prepare_process()
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as scratch, quiet_and_offline():
        bench = Bench(Path(scratch), quick)
        base, folder = bench.base, bench.folder
        run_sft(load_nf4(base), base, folder / "start")

        def pretrained() -> Any:
            from peft import PeftModel

            return PeftModel.from_pretrained(load_nf4(base), folder / "start" / "checkpoint-3", is_trainable=True)

        def fresh() -> Any:
            return load_nf4(base)

        def sft(model: Any, out: Path, resume: bool = False) -> proof.Record:
            return run_sft(model, base, folder / "start" if resume else out, resume=resume)

        print("| streamed against resident | runs | equal |\n|---|---|---|")
        modes: tuple[proof.Recompute, ...] = (
            *("none", "reentrant", "non-reentrant"),
            *("every second layer", "offloaded"),
        )
        everything = NONE
        for mode in modes:
            runs, total = bench.plain(mode)
            row(f"plain loop, recompute: {mode}", runs, total)
            everything += total
        runs, total = bench.plain("non-reentrant", dora=True)
        row("plain loop, DoRA", runs, total)
        everything += total
        for name, run, model in (
            ("SFTTrainer", sft, fresh),
            ("SFTTrainer, resumed", lambda model, out: sft(model, out, resume=True), fresh),
            ("DPOTrainer, fresh adapter", lambda model, out: run_dpo(model, base, out, precompute=False), fresh),
            (
                "DPOTrainer, fresh adapter, reference precomputed",
                lambda model, out: run_dpo(model, base, out, precompute=True),
                fresh,
            ),
            ("DPOTrainer, trained adapter", lambda model, out: run_dpo(model, base, out, precompute=False), pretrained),
            (
                "DPOTrainer, trained adapter, reference precomputed",
                lambda model, out: run_dpo(model, base, out, precompute=True),
                pretrained,
            ),
        ):
            runs, total = bench.under_trl(run, model, name.replace(" ", "-"))
            row(name, runs, total)
            everything += total
        print(f"| all | | **{everything.equal:,} of {everything.total:,}** |")

        print("\n| negative control | equal |\n|---|---|")
        for name, engine, kind, slots in (
            ("waiting does nothing", proof.NeverWaits, LayerStreamer, 2),
            ("every copy one wait late", proof.OneCopyLate, LayerStreamer, 2),
            ("hooks on decoder layers", SyncEngine, proof.HooksOnLayers, 2),
            ("slots given out in turn, bound at each load", lambda: ThreadedEngine(late=1.0), proof.SlotsInTurn, 3),
        ):
            print(f"| {name} | {bench.control(engine, kind, slots)} |", flush=True)
        print(f"\n{time.monotonic() - started:.0f} s")


if __name__ == "__main__":
    main()
