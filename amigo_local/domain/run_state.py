"""RunState: what the records of one run add up to, in bounded memory, for whoever shows it."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from itertools import takewhile
from typing import Literal

from amigo_local.domain.artifact import Artifact, Figure
from amigo_local.domain.events import (
    CheckpointSaved,
    MetricLogged,
    Progress,
    Record,
    RunContinued,
    RunFinished,
    RunPaused,
    RunStarted,
    StageCancelled,
    StageFailed,
    StageFinished,
    StageSkipped,
    StageStarted,
    Table,
    TokenGenerated,
)
from amigo_local.domain.series import Series

StageStatus = Literal["running", "done", "failed", "cancelled"]
LOG_RECORDS = 2000
_TABLES = 40
_CHECKPOINTS = 200


@dataclass
class StageState:
    """One stage of a run; done again after a cut, it goes on in the same place."""

    stage: str
    of: str = ""
    """Name of its recipe, in a chain of several."""
    fingerprint: str = ""
    attempt: int = 0
    """Which start of the run it was last met in, from 1."""
    status: StageStatus = "running"
    summary: str = ""
    started: float = 0.0
    """Seconds since the epoch."""
    ended: float | None = None
    elapsed_seconds: float | None = None
    """Of the work, as it was measured; None while it runs and for what was found done."""
    estimate_seconds: float | None = None
    progress: Progress | None = None
    artifact: Artifact | None = None
    figures: dict[str, Figure] = field(default_factory=dict)
    peak_rss_bytes: int = 0
    peak_vram_bytes: int | None = None
    error: StageFailed | None = None
    metrics: dict[str, Series] = field(default_factory=dict)
    checkpoints: deque[CheckpointSaved] = field(default_factory=lambda: deque(maxlen=_CHECKPOINTS))

    @property
    def tells_metrics(self) -> bool:
        return bool(self.metrics)


@dataclass
class RunState:
    """`apply` takes records in order; those that it knows already change nothing."""

    run_id: str = ""
    verb: str = ""
    title: str = ""
    started: float = 0.0
    last_time: float = 0.0
    attempt: int = 0
    paused: bool = False
    exit_code: int | None = None
    """None: it runs, or was cut."""
    elapsed_seconds: float | None = None
    stages: list[StageState] = field(default_factory=list)
    log: deque[Record] = field(default_factory=lambda: deque(maxlen=LOG_RECORDS))
    """The last records but pieces of text, progress and metrics, of which there are too many to read."""
    tables: deque[Table] = field(default_factory=lambda: deque(maxlen=_TABLES))
    last_seq: int = -1
    records: int = 0
    """How many were applied: it changes whenever there is something new."""

    def apply(self, record: Record) -> None:
        if record.seq <= self.last_seq:
            return
        self.last_seq, self.last_time, self.records = record.seq, record.time, self.records + 1
        self.run_id = record.run_id
        event = record.event
        if isinstance(event, TokenGenerated):
            return
        stage = self.running
        if isinstance(event, Progress):
            if stage:
                stage.progress = event
            return
        if isinstance(event, MetricLogged):
            if stage:
                for name, value in event.values.items():
                    stage.metrics.setdefault(name, Series()).add(event.step, value)
            return
        self.log.append(record)
        self._apply_rare(record)

    def _apply_rare(self, record: Record) -> None:
        event, stage = record.event, self.running
        match event:
            case RunStarted():
                self.verb, self.title, self.exit_code, self.paused = event.verb, event.title, None, False
                self.started = self.started or record.time
                self.attempt += 1
                if stage:  # it was cut without a word
                    stage.status, stage.ended = "cancelled", record.time
            case RunFinished():
                self.exit_code, self.paused = event.exit_code, False
                self.elapsed_seconds = event.elapsed_seconds
            case RunPaused():
                self.paused = True
            case RunContinued():
                self.paused = False
            case StageStarted():
                self._begin(record, event)
            case StageSkipped():
                found = self._place(record.stage, event.of, event.fingerprint)
                found.status, found.artifact, found.figures = "done", event.artifact, event.artifact.figures
                found.started = found.started or record.time
                found.ended = record.time
            case StageFinished() if stage:
                stage.status, stage.ended, stage.elapsed_seconds = "done", record.time, event.elapsed_seconds
                stage.artifact, stage.figures = event.artifact, event.figures
                stage.peak_rss_bytes, stage.peak_vram_bytes = event.peak_rss_bytes, event.peak_vram_bytes
            case StageFailed():
                failed = stage or self._place(record.stage, "", "")
                failed.status, failed.ended, failed.error = "failed", record.time, event
            case StageCancelled() if stage:
                stage.status, stage.ended = "cancelled", record.time
            case CheckpointSaved() if stage:
                stage.checkpoints.append(event)
            case Table():
                self.tables.append(event)
            case _:
                pass

    def _begin(self, record: Record, event: StageStarted) -> None:
        stage = self._place(record.stage, event.of, event.fingerprint)
        stage.status, stage.summary, stage.estimate_seconds = "running", event.summary, event.estimate_seconds
        stage.started, stage.ended, stage.progress, stage.error = record.time, None, None, None

    def _place(self, name: str, of: str, fingerprint: str) -> StageState:
        """The stage of that fingerprint, newly met or met again."""
        for stage in self.stages:
            if stage.stage == name and stage.of == of and stage.fingerprint == fingerprint:
                break
        else:
            stage = StageState(name, of, fingerprint)
            self.stages.append(stage)
        stage.attempt = self.attempt
        return stage

    def log_after(self, seq: int) -> list[Record]:
        """Records of the log that are newer than that one, in order."""
        return list(takewhile(lambda record: record.seq > seq, reversed(self.log)))[::-1]

    @property
    def running(self) -> StageState | None:
        return next((stage for stage in reversed(self.stages) if stage.status == "running"), None)

    @property
    def trainings(self) -> list[StageState]:
        """Stages that told metrics or saved checkpoints, or are called train."""
        return [stage for stage in self.stages if stage.stage == "train" or stage.tells_metrics]

    @property
    def error(self) -> StageFailed | None:
        """Of the stage that ended the run, when one did."""
        if self.exit_code in (None, 0):
            return None
        failed = [stage for stage in self.stages if stage.status == "failed" and stage.attempt == self.attempt]
        return failed[-1].error if failed else None
