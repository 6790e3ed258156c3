"""A session whose verbs answer with pinned records, for pictures that are to be the same on every machine."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator, Callable, Mapping
from pathlib import Path
from typing import Any

from amigo_local.domain.artifact import Artifact, Figure
from amigo_local.domain.events import (
    AnswerShown,
    AnyEvent,
    CheckpointSaved,
    LoadedModel,
    MachineMeasured,
    MetricLogged,
    Note,
    OllamaState,
    Progress,
    Record,
    RunStarted,
    StageFinished,
    StageStarted,
    decode_record,
)
from amigo_local.domain.machine import Machine
from amigo_local.domain.run_state import RunState
from amigo_local.domain.settings import OllamaSettings, ProgramSettings
from amigo_local.tui.asking import Reply
from amigo_local.tui.session import Loop, Session

PINNED = Path(__file__).resolve().parent.parent / "tui" / "pinned"
NOW = 1_795_800_000.0
RUN = "20261127-182000-run"
GIB = 1 << 30
Answer = Callable[[Mapping[str, Any]], list[AnyEvent]]

MACHINE = MachineMeasured(
    machine=Machine(
        platform="Linux x86_64",
        cpu_count=8,
        ram_total_bytes=16 * GIB,
        ram_available_bytes=9 * GIB,
        disk_free_bytes=180 * GIB,
        gpu_name="NVIDIA GeForce RTX 4050 Laptop GPU",
        vram_total_bytes=6 * GIB,
        vram_free_bytes=int(0.6 * GIB),
    ),
    ollama=OllamaState(
        url="http://127.0.0.1:11434",
        version="0.9.3",
        loaded=(LoadedModel(name="amigo-reasoner:12b", size_bytes=8 * GIB, size_vram_bytes=5 * GIB),),
    ),
)


def recorded(name: str) -> list[AnyEvent]:
    """Events of `tests/tui/pinned/NAME.jsonl`: what the real verb said once, with --json."""
    return [decode_record(line).event for line in (PINNED / f"{name}.jsonl").read_text().splitlines()]


def artifact(stage: str, kind: Any, gib: float, **figures: Figure) -> Artifact:
    return Artifact(
        kind,
        f"/home/mara/.local/share/amigo-local/artifacts/{stage}-3f2a",
        f"sha256:{stage:a<64}",
        int(gib * GIB),
        stage,
        f"{stage}-1",
        figures=figures,
        run_id=RUN,
        created=NOW,
    )


def loop_records() -> list[Record]:
    """A chain in the middle of its first training."""
    events: list[tuple[float, str, AnyEvent]] = [
        (-0.5, "run", RunStarted(verb="run", title="run all --model amigo-reasoner:12b"))
    ]

    def done(at: float, seconds: float, stage: str, of: str, made: Artifact) -> None:
        events.append((at, stage, StageStarted(f"{stage}-{of}", f"{stage} of the loop", of=of)))
        events.append((at + seconds, stage, StageFinished(made, seconds, 900 << 20, made.figures)))

    done(2, 41, "tokenizer", "", artifact("tokenizer", "tokenizer", 0.03, vocabulary=262_144))
    samples = {
        "stage1_nl_to_code": 4_812,
        "stage2_context": 3_390,
        "stage3_debugging": 1_760,
        "stage4_reasoning": 1_204,
        "stage5_preference": 988,
    }
    at = 60.0
    for of, count in samples.items():
        if of in ("stage4_reasoning", "stage5_preference"):
            done(at, 2_900, "candidates", of, artifact("candidates", "candidates", 0.01, problems=300))
            at += 2_910
        done(at, 380, "prepare", of, artifact("prepare", "dataset", 0.02, train_samples=count))
        at += 390
    events.append((at, "prepare", Note("12 rows held secrets and were left out")))
    done(at, 700, "quantize", "", artifact("quantize", "nf4", 5.4, mean_error=0.0939))
    done(at + 710, 1_800, "evaluate", "base", artifact("evaluate", "report", 0.001))
    train = "stage1_nl_to_code"
    events.append(
        (10_900, "train", StageStarted("train-1", f"{train}: Refine the model with the recipe's QLoRA", of=train))
    )
    for step in range(1, 181):
        wobble = 0.12 * math.sin(step * 1.7) + 0.05 * math.cos(step * 0.6)
        values = {
            "loss": 0.55 + 1.1 * math.exp(-step / 45) + wobble * math.exp(-step / 160),
            "learning_rate": 2e-4 * min(1.0, step / 18) * (0.5 + 0.5 * math.cos(math.pi * step / 601)),
            "grad_norm": 0.9 + wobble,
            "tokens_per_second": 92 + 4 * math.sin(step / 9),
            "seconds_per_step": 78.0,
            "eta_seconds": (601 - step) * 78.0,
            "vram_bytes": 5.1 * GIB,
            "vram_peak_bytes": 5.4 * GIB,
        }
        events.append((10_900 + step * 78, "train", MetricLogged(step, values)))
        if step % 50 == 0:
            events.append((10_900 + step * 78, "train", MetricLogged(step, {"eval_loss": 0.62 + math.exp(-step / 45)})))
            events.append((10_901 + step * 78, "train", CheckpointSaved(step, f"/home/mara/checkpoint-{step}")))
    events.append((10_900 + 180 * 78, "train", Progress("training", 180, 601, "steps")))
    return [Record(RUN, seq, NOW + at, stage, event) for seq, (at, stage, event) in enumerate(events)]


def _runs(params: Mapping[str, Any]) -> list[AnyEvent]:
    action = params.get("action", "ls")
    return recorded({"ls": "runs", "show": "runs-show", "clean": "runs-clean"}[action])


def _answers(params: Mapping[str, Any]) -> list[AnyEvent]:
    if params.get("id"):
        return [
            AnswerShown(
                prompt_id="fd9b6f970c14",
                suite="reasoning",
                prompt="Write a Python function `print_text(text)` …",
                side=1,
                label="after",
                model="smollm2:smoke",
                answer="```python\ndef print_text(text):\n    print(text)\n```",
                passed=False,
                verdict="failed: AssertionError: Failed example: print_text(None)",
            )
        ]
    if params.get("all"):
        return recorded("answers-all")
    return recorded("answers-tables" if params.get("tables") else "answers")


class PinnedAsked:
    """Looks like tui.asking.Asked."""

    def __init__(self, events: list[AnyEvent]) -> None:
        self._records = [Record("r", seq, NOW, "x", event) for seq, event in enumerate(events)]
        self.reply = Reply(self._records, 0, "r")

    async def cancel(self) -> None:
        """There is nothing going on."""

    async def _batches(self) -> AsyncIterator[list[Record]]:
        yield self._records

    def __aiter__(self) -> AsyncIterator[list[Record]]:
        return self._batches()


class PinnedSession(Session):
    """`answers`: verb -> what it says to those params. The followed run is the chain of loop_records."""

    def __init__(self, home: Path, answers: Mapping[str, Answer] = {}, *, with_run: bool = True) -> None:
        super().__init__(home, ProgramSettings(ollama=OllamaSettings(use=False)), clock=lambda: NOW)
        self._answers: dict[str, Answer] = {
            "status": lambda params: [MACHINE],
            "plan": lambda params: recorded("plan"),
            "doctor": lambda params: recorded("doctor"),
            "recipes": lambda params: recorded("recipes"),
            "models": lambda params: recorded("models-show" if params.get("action") == "show" else "models"),
            "runs": _runs,
            "answers": _answers,
            **answers,
        }
        self._with_run = with_run
        if with_run:
            self.saved.choice.recipe = ["all"]
            self.saved.choice.model = "amigo-reasoner:12b"
            self._loop = Loop("run", ("all",), "amigo-reasoner:12b")

    def stream(self, verb: str, params: Mapping[str, Any]) -> Any:
        return PinnedAsked(self._answers[verb](params) if verb in self._answers else [])

    async def follow_newest(self) -> None:
        if self._with_run:
            self.run, self.live = RunState(run_id=RUN), True
            records = loop_records()
            for record in records:
                self.run.apply(record)
            self.on_update(self.run, records)

    def is_live(self, run_id: str) -> bool:
        return self._with_run and run_id == RUN

    async def warm(self) -> None:
        """No process is needed."""
        await asyncio.sleep(0)
