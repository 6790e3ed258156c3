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
