"""Runs a verb: journals it, skips what is done, starts workers, and reports every record."""

from __future__ import annotations

import contextlib
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from amigo_local.domain.artifact import Artifact
from amigo_local.domain.errors import EXIT_CANCELLED, EXIT_DONE, EXIT_FAILED, AmigoError, Cancelled, InputError
from amigo_local.domain.events import (
    AnyEvent,
    Record,
    RunFinished,
    RunStarted,
    StageCancelled,
    StageFailed,
    StageFinished,
    StageSkipped,
    StageStarted,
)
from amigo_local.domain.plan import Needs
from amigo_local.domain.settings import ProgramSettings
from amigo_local.domain.strict import Strict
from amigo_local.domain.units import format_size
from amigo_local.engine.contract import LoadStage, Params, RunRecord, Stage, StageContext
from amigo_local.engine.execute import Job, execute, output_path
from amigo_local.engine.fingerprint import fingerprint
from amigo_local.engine.journal import JOURNAL_NAME, Journal
from amigo_local.engine.lock import hold_home
from amigo_local.engine.machine import measure_machine
from amigo_local.engine.worker_process import WORKER_COMMAND, WorkerProcess
from amigo_local.engine.workspace import Workspace, write_synced


@dataclass(frozen=True)
class Outcome:
    """What became of a verb. `error` is set when it failed, for callers that want to raise it."""

    exit_code: int
    run_id: str
    artifact: Artifact | None = None
    error: StageFailed | None = None


class _Stopped(Exception):
    """A stage of the chain failed or was cancelled; the chain ends here."""

    def __init__(self, exit_code: int, error: StageFailed | None = None) -> None:
        super().__init__()
        self.exit_code = exit_code
        self.error = error


class Runner:
    """Runs verbs on one home; `on_record` gets every record, in order."""

    def __init__(
        self,
        workspace: Workspace,
        settings: ProgramSettings,
        load_stage: LoadStage,
        on_record: Callable[[Record], None],
        worker_command: Sequence[str] = WORKER_COMMAND,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.workspace = workspace
        self.settings = settings
        self._load_stage = load_stage
        self.on_record = on_record
        self._worker_command = worker_command
        self._clock = clock
        self._worker: WorkerProcess | None = None
        self._journal: Journal | None = None
        self._cancelled = False
        self._seq = 0
        self._run_id = ""

    def cancel(self) -> bool:
        """Asks the work to stop; True when a worker was told, False when it runs in this process."""
        self._cancelled = True
        if self._worker is None:
            return False
        self._worker.cancel()
        return True

    def reset(self) -> None:
        """Forgets an earlier cancel, so that another verb can run."""
        self._cancelled = False

    def run(self, verb: str, params: Params, title: str = "", resume: str | None = None) -> Outcome:
        """Runs one verb to its end. Raises only InputError, before anything has started: a home
        that can't be written or is in use. All else is in the records and the outcome."""
        stage = self._load_stage(verb)
        title = title or verb
        if stage.again and (earlier := stage.again(params, self.workspace)):
            self.settings = earlier.settings
            try:
                asked = msgspec.convert(earlier.params, self._load_stage(earlier.verb).asked)
            except msgspec.ValidationError as error:
                text = f"run {earlier.run_id} was asked of another version: {error}"
                raise InputError(text, f"start it anew: amigo-local {earlier.title}") from error
            return self.run(earlier.verb, asked, earlier.title, resume=earlier.run_id)
        if not stage.locks:
            self._run_id = self.workspace.new_run_id(verb, self._clock())
            return self._run(stage, params, title, resumed=False)
        self.workspace.prepare()
        with hold_home(self.workspace.root, f"amigo-local {title}"):
            self._run_id = resume or self.workspace.new_run_id(verb, self._clock())
            folder = self.workspace.runs_dir / self._run_id
            folder.mkdir(parents=True, exist_ok=True)
            record = RunRecord(
                run_id=self._run_id, verb=verb, title=title, params=_plain(params), settings=self.settings
            )
            write_synced(folder / "run.json", msgspec.json.format(msgspec.json.encode(record), indent=1))
            with Journal(folder / JOURNAL_NAME) as journal:
                self._journal, self._seq = journal, journal.next_seq
                try:
                    return self._run(stage, params, title, resumed=resume is not None)
                finally:
                    self._journal = None

    def _run(self, stage: Stage, params: Params, title: str, resumed: bool) -> Outcome:
        started = self._clock()
        artifact, error, code = None, None, EXIT_DONE
        if stage.locks:
            self._emit(stage.name, RunStarted(verb=stage.name, title=title, resumed=resumed))
        try:
            artifact = self._run_chain(stage, params) if stage.steps else self._run_stage(stage, params)
        except _Stopped as stop:
            error, code = stop.error, stop.exit_code
        if stage.locks:
            self._emit(stage.name, RunFinished(exit_code=code, elapsed_seconds=self._clock() - started))
        return Outcome(code, self._run_id, artifact, error)

    def _run_chain(self, stage: Stage, params: Params) -> Artifact | None:
        """Drives the chain's steps; the last artifact is the chain's."""
        assert stage.steps is not None
        artifact: Artifact | None = None
        with self._reporting_failures(stage.name):
            chain = stage.steps(params, self.context(stage.name))
        while True:
            with self._reporting_failures(stage.name):
                try:
                    step = chain.send(artifact)
                except StopIteration:
                    return artifact
            artifact = self._run_stage(self._load_stage(step.stage), step.params, step.of) or artifact

    def _run_stage(self, stage: Stage, params: Params, of: str = "") -> Artifact | None:
        with self._reporting_failures(stage.name):
            context = self.context(stage.name)
            sources = stage.inputs(params, context) if stage.inputs else {}
            plain = _plain(params)
            mark = fingerprint(stage.name, stage.version, plain, sources)
            if stage.produces and (done := self._still_done(stage, params, mark, context)):
                self._emit(stage.name, StageSkipped(mark, done))
                return done
            needs = stage.needs(params, context) if stage.needs else Needs()
            check_room(stage, params, needs, context)
            if stage.place == "worker":  # what is answered at once needs no announcement
                summary = f"{of}: {stage.summary}" if of else stage.summary
                self._emit(stage.name, StageStarted(mark, summary, needs.seconds))
        job = Job(
            run_id=self._run_id,
            stage=stage.name,
            params=plain,
            settings=self.settings,
            home=str(self.workspace.root),
            next_seq=self._seq,
            fingerprint=mark,
            sources=sources,
        )
        if stage.place == "here":
            with self._reporting_failures(stage.name):
                finished = execute(stage, job, lambda event: self._emit(stage.name, event))
                self._emit(stage.name, finished)
                return finished.artifact
        return self._run_in_worker(job)

    def _still_done(self, stage: Stage, params: Params, mark: str, context: StageContext) -> Artifact | None:
        done = self.workspace.committed(stage.name, mark)
        if done and stage.still_holds and not stage.still_holds(params, done, context):
            return None
        return done

    def _run_in_worker(self, job: Job) -> Artifact | None:
        with contextlib.ExitStack() as stack:
            if self._journal:
                log = self._journal.path.with_name("worker.log")
            else:
                log = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="amigo-"))) / "worker.log"
            self._worker = WorkerProcess(job, log, self._worker_command)
            stack.callback(self._forget_worker)
            if self._cancelled:
                self._worker.cancel()
            event: AnyEvent | None = None
            for record in self._worker.records():
                self._publish(record)
                event = record.event
        if isinstance(event, StageFinished):
            return event.artifact
        if isinstance(event, StageFailed):
            raise _Stopped(event.exit_code, event)
        raise _Stopped(EXIT_CANCELLED)

    def _forget_worker(self) -> None:
        if self._worker:
            self._worker.kill()  # a no-op after a proper end; never leave one behind on an exception
        self._worker = None

    @contextlib.contextmanager
    def _reporting_failures(self, stage: str) -> Any:
        """Turns what is raised in this process into the event a worker would have sent."""
        try:
            yield
        except (Cancelled, KeyboardInterrupt):
            self._emit_always(stage, StageCancelled())
            raise _Stopped(EXIT_CANCELLED) from None
        except AmigoError as error:
            failed = StageFailed(error.message, error.hint, error.exit_code)
            self._emit_always(stage, failed)
            raise _Stopped(error.exit_code, failed) from error
        except OSError as error:
            failed = StageFailed(f"{type(error).__name__}: {error}", "", EXIT_FAILED)
            self._emit_always(stage, failed)
            raise _Stopped(EXIT_FAILED, failed) from error

    def context(self, stage: str) -> StageContext:
        """What a stage's light hooks (inputs, needs, steps) get in this process."""
        machine = measure_machine(self.workspace.root, self.settings.machine)
        return StageContext(self.workspace, self.settings, machine, self._run_id, lambda e: self._emit(stage, e))

    def _emit(self, stage: str, event: AnyEvent) -> None:
        if self._cancelled and not isinstance(event, RunFinished):
            raise Cancelled
        self._emit_always(stage, event)

    def _emit_always(self, stage: str, event: AnyEvent) -> None:
        self._publish(Record(self._run_id, self._seq, self._clock(), stage, event))

    def _publish(self, record: Record) -> None:
        self._seq = record.seq + 1
        if self._journal:
            self._journal.append(record)
        self.on_record(record)


def check_room(stage: Stage, params: Params, needs: Needs, context: StageContext) -> None:
    """Refuses, before anything is written, what memory or disk can't hold, or would be overwritten."""
    out = output_path(params)
    if out and out.exists():
        raise InputError(f"{out} already exists", "give another --out, or remove it first")
    if needs.ram_bytes > context.machine.ram_total_bytes:
        raise InputError(
            f"RAM: {stage.name} needs {format_size(needs.ram_bytes)}, there are"
            f" {format_size(context.machine.ram_total_bytes)}",
            "use a machine with more memory, or a smaller model",
        )
    machine = measure_machine(out.parent, context.settings.machine) if out else context.machine
    if needs.disk_bytes > machine.disk_free_bytes:
        place = out.parent if out else context.workspace.root
        raise InputError(
            f"the disk of {place} is too small: {stage.name} needs {format_size(needs.disk_bytes)}"
            f" ({needs.disk_bytes} bytes), {format_size(machine.disk_free_bytes)}"
            f" ({machine.disk_free_bytes} bytes) are free",
            "free some space (`amigo-local runs clean`), or use another disk with --home DIR",
        )


def _plain(params: Strict) -> dict[str, Any]:
    plain: dict[str, Any] = msgspec.to_builtins(params)
    return plain
