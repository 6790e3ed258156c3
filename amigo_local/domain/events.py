"""What a stage says while it works: typed events, and the Record that carries each one.

The same JSON line is the journal entry, what a worker writes on its stdout, what arrives from a
remote machine, and what the CLI and the TUI render.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import msgspec

from amigo_local.domain.artifact import Artifact, Figure
from amigo_local.domain.generation import Answer
from amigo_local.domain.machine import Machine
from amigo_local.domain.plan import Plan


class Event(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="type"):
    """Base of every event; never emitted itself."""


class RunStarted(Event, frozen=True, tag="run_started"):
    verb: str
    title: str
    stages: tuple[str, ...] = ()
    resumed: bool = False


class RunFinished(Event, frozen=True, tag="run_finished"):
    exit_code: int
    elapsed_seconds: float


class RunPaused(Event, frozen=True, tag="run_paused"):
    """Somebody asked it to wait; it holds its memory until it goes on."""


class RunContinued(Event, frozen=True, tag="run_continued"):
    """It goes on after a pause."""


class StageStarted(Event, frozen=True, tag="stage_started"):
    fingerprint: str
    summary: str
    estimate_seconds: float | None = None
    of: str = ""
    """Name of the recipe that the stage belongs to, in a chain of several."""


class StageSkipped(Event, frozen=True, tag="stage_skipped"):
    """Already committed by an earlier run with the same fingerprint."""

    fingerprint: str
    artifact: Artifact
    of: str = ""


class Progress(Event, frozen=True, tag="progress"):
    """`done` of `total` in `unit` ("tensors", "bytes", "steps", "prompts"); total None: unknown."""

    label: str
    done: float
    total: float | None
    unit: str


class MetricLogged(Event, frozen=True, tag="metric"):
    """Training or evaluation values at one step."""

    step: int
    values: dict[str, float]


class CheckpointSaved(Event, frozen=True, tag="checkpoint"):
    step: int
    path: str


class TokenGenerated(Event, frozen=True, tag="token"):
    """A piece of an answer. `side` is 0 for the first model and 1 for the second."""

    side: int
    prompt_index: int
    text: str


class GenerationFinished(Event, frozen=True, tag="generation"):
    """The end of one answer, with load time apart from speed."""

    side: int
    prompt_index: int
    model: str
    prompt_tokens: int
    answer_tokens: int
    load_seconds: float
    prompt_seconds: float
    answer_seconds: float
    stop_reason: str
    first_token_seconds: float | None = None
    """From the question to the first piece of text, without loading; None: not measured, or nothing was said."""
    tokens_before_code: int | None = None
    """0: the code came at once; None: no code came, or a journal from before it was counted."""

    @classmethod
    def of(cls, answer: Answer, side: int, prompt_index: int, model: str) -> GenerationFinished:
        """The event of a finished answer."""
        return cls(
            side=side,
            prompt_index=prompt_index,
            model=model,
            prompt_tokens=answer.prompt_tokens,
            answer_tokens=answer.answer_tokens,
            load_seconds=answer.load_seconds,
            prompt_seconds=answer.prompt_seconds,
            answer_seconds=answer.answer_seconds,
            stop_reason=answer.stop_reason,
            first_token_seconds=answer.first_token_seconds,
            tokens_before_code=answer.tokens_said_before_code,
        )

    @property
    def tokens_per_second(self) -> float:
        """Decode speed; 0 when nothing was measured."""
        return self.answer_tokens / self.answer_seconds if self.answer_seconds > 0 else 0.0


class Note(Event, frozen=True, tag="note"):
    """A sentence for the person; `fix` is a command or a change that would mend a problem."""

    text: str
    level: Literal["info", "good", "warning", "problem"] = "info"
    fix: str = ""


Format = Literal["text", "bytes", "seconds", "count", "ratio", "number"]


class Column(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    name: str
    format: Format = "text"


class Table(Event, frozen=True, tag="table"):
    """Rows of plain values; a face formats each by its column."""

    title: str
    columns: tuple[Column, ...]
    rows: tuple[tuple[Figure, ...], ...]


class SamplePart(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A piece of a sample as the model reads it."""

    text: str
    tokens: int
    trained: bool
    """Whether its tokens are learnt; the others are only read."""
    label: str = ""
    """Which answer it is, in a sample with two of them."""


class SampleShown(Event, frozen=True, tag="sample"):
    """A training sample, rendered with the model's own chat template."""

    source: str
    name: str
    parts: tuple[SamplePart, ...]
    length_tokens: int
    """Of the longest chat in it."""
    limit_tokens: int
    """Longer samples aren't trained on."""

    @property
    def is_too_long(self) -> bool:
        return self.length_tokens > self.limit_tokens


class PlanMade(Event, frozen=True, tag="plan"):
    """The whole plan: stages, and how training is fitted to the machine."""

    plan: Plan


class LoadedModel(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A model that a server holds in memory."""

    name: str
    size_bytes: int
    size_vram_bytes: int
    expires: str = ""
    """ISO 8601; empty: it isn't told."""


class OllamaState(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    url: str
    version: str
    loaded: tuple[LoadedModel, ...] = ()


class RunningRun(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    run_id: str
    title: str
    since: float
    """Seconds since the epoch."""
    paused: bool = False


class MachineMeasured(Event, frozen=True, kw_only=True, tag="machine_measured"):
    """What is free now, who serves, and what runs in this home."""

    machine: Machine
    ollama: OllamaState | None = None
    ollama_problem: str = ""
    """Why no server answers."""
    running: tuple[RunningRun, ...] = ()


class Ancestor(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A model, set or adapter and, in `sources`, what it was made from."""

    role: str
    """As what it went into the one above it: "adapter", "dataset", "base"."""
    name: str
    """What a person calls it: a tag, or a file or folder; empty where only its digest is known."""
    digest: str
    path: str | None = None
    stage: str = ""
    """What made it; empty: not made here."""
    recipe: str = ""
    run_id: str = ""
    tags: tuple[str, ...] = ()
    """That serve it now."""
    sources: tuple[Ancestor, ...] = ()
    is_above: bool = False
    """Its own sources stand at an earlier place in the tree."""


class LineageShown(Event, frozen=True, kw_only=True, tag="lineage"):
    """Where a model comes from, and what was made from it."""

    ref: str
    origin: Ancestor
    made_from_it: tuple[Ancestor, ...] = ()
    """Without their sources."""


class AnswerShown(Event, frozen=True, kw_only=True, tag="answer"):
    """One answer of an evaluation, with what was found about it."""

    prompt_id: str
    suite: str
    prompt: str
    side: int
    label: str
    """`before`, `after` or the model's name."""
    model: str
    answer: str
    passed: bool | None
    """None: it wasn't run."""
    verdict: str
    figures: dict[str, Figure] = {}


class StageFinished(Event, frozen=True, tag="stage_finished"):
    artifact: Artifact | None
    elapsed_seconds: float
    peak_rss_bytes: int
    figures: dict[str, Figure] = {}
    peak_vram_bytes: int | None = None


class StageFailed(Event, frozen=True, tag="stage_failed"):
    message: str
    hint: str
    exit_code: int
    detail: str = ""
    """The traceback of an unexpected failure, for the journal and --json; faces hide it."""


class StageCancelled(Event, frozen=True, tag="stage_cancelled"):
    message: str = "cancelled"


AnyEvent = (
    RunStarted
    | RunFinished
    | RunPaused
    | RunContinued
    | StageStarted
    | StageSkipped
    | Progress
    | MetricLogged
    | CheckpointSaved
    | TokenGenerated
    | GenerationFinished
    | Note
    | Table
    | SampleShown
    | PlanMade
    | MachineMeasured
    | LineageShown
    | AnswerShown
    | StageFinished
    | StageFailed
    | StageCancelled
)

Emit = Callable[[AnyEvent], None]
"""How a room reports: it is handed one of these and never prints. Emitting may raise Cancelled."""


class Record(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """An event with its run, its place in it and its time (seconds since the epoch)."""

    run_id: str
    seq: int
    time: float
    stage: str
    event: AnyEvent


_encoder = msgspec.json.Encoder()
_decoder = msgspec.json.Decoder(Record)


def encode_record(record: Record) -> bytes:
    """One JSON line without its newline."""
    return _encoder.encode(record)


def decode_record(line: bytes | str) -> Record:
    """Inverse of encode_record. Raises msgspec.DecodeError on anything else."""
    return _decoder.decode(line)
