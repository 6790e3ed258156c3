"""Runs a verb: journals it, skips what is done, starts workers, and reports every record."""

from __future__ import annotations

import contextlib
import tempfile
import threading
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
    Note,
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
)
from amigo_local.domain.plan import Needs
from amigo_local.domain.settings import ProgramSettings
from amigo_local.domain.strict import Strict
from amigo_local.engine.check_room import check_room
from amigo_local.engine.contract import LoadStage, Params, Stage, StageContext, Step
from amigo_local.engine.control import Command, obeying
from amigo_local.engine.execute import Job, execute
from amigo_local.engine.fingerprint import fingerprint
from amigo_local.engine.journal import JOURNAL_NAME, Journal
from amigo_local.engine.lock import hold_home, hold_run
from amigo_local.engine.machine import measure_machine
from amigo_local.engine.run_record import RunRecord, read_run, write_run
from amigo_local.engine.steering import Steering
from amigo_local.engine.watching import watch
from amigo_local.engine.worker_process import WORKER_COMMAND, WorkerProcess
from amigo_local.engine.workspace import Workspace


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


@dataclass(frozen=True)
class _Prepared:
    """A step whose inputs are known."""

    stage: Stage
    step: Step
    sources: dict[str, str]
    fingerprint: str
    done: Artifact | None


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
        self._steering = Steering()
        self._lock = threading.RLock()  # over what a thread that commands and the one that works both touch
        self._verb = ""
        self._going = False
        self._seq = 0
        self._run_id = ""

    def cancel(self) -> bool:
        """Asks the work to stop; True when a worker was told, False when it runs in this process."""
        return self.command("cancel")

    def command(self, command: Command) -> bool:
        """From any thread. pause: the work waits at its next event, and keeps its memory. stop: it ends as cancelled,
        at its next checkpoint or before the next stage. True when a worker was told."""
        with self._lock:
            before = self._steering.paused
            self._steering.obey(command)
            if self._going and self._steering.paused != before and command != "cancel":
                self._emit_always(self._verb, RunContinued() if before else RunPaused())
            if self._worker is None:
                return False
            self._worker.tell(command)
            return True

    def reset(self) -> None:
        """Forgets an earlier cancel, so that another verb can run."""
        self._steering = Steering()

    def end_worker(self) -> None:
        """At once, for a process that is about to end itself."""
        if worker := self._worker:
            worker.kill()

    def run(self, verb: str, params: Params, title: str = "", resume: str | None = None) -> Outcome:
        """Runs one verb to its end. Raises only InputError, before anything has started: a home
        that can't be written or is in use. All else is in the records and the outcome."""
        stage = self._load_stage(verb)
        title = title or verb
        if stage.follows and (watched := stage.follows(params, self.workspace)):
            self._run_id = watched
            ended = watch(self.workspace.runs_dir / watched, self.on_record, self._steering.wait_cancelled, self._clock)
            return Outcome(ended.exit_code, watched, error=ended.error)
        if stage.again and (earlier := stage.again(params, self.workspace)):
            self.settings = earlier.settings
            try:
                asked = msgspec.convert(earlier.params, self._load_stage(earlier.verb).asked)
            except msgspec.ValidationError as error:
                text = f"run {earlier.run_id} was asked of another version: {error}"
                raise InputError(text, f"start it anew: amigo-local {earlier.title}") from error
            return self.run(earlier.verb, asked, earlier.title, resume=earlier.run_id)
        self._verb = verb
        if not stage.is_journalled:
            self._run_id = self.workspace.new_run_id(verb, self._clock())
            return self._run(stage, params, title, resumed=False)
        self.workspace.prepare()
        with contextlib.ExitStack() as held:
            if stage.locks:
                held.enter_context(hold_home(self.workspace.root, f"amigo-local {title}"))
            folder = self._run_folder(verb, resume)
            held.enter_context(hold_run(folder, f"amigo-local {title}"))
            self._run_id = folder.name
            record = RunRecord(
                run_id=self._run_id, verb=verb, title=title, params=_plain(params), settings=self.settings
            )
            write_run(self.workspace, record)
            with Journal(folder / JOURNAL_NAME) as journal, obeying(folder, self.command):
                self._journal, self._seq = journal, journal.next_seq
                try:
                    return self._run(stage, params, title, resumed=resume is not None)
                finally:
                    self._journal = None

    def _run_folder(self, verb: str, resume: str | None) -> Path:
        if resume is not None:
            earlier = read_run(self.workspace, resume)
            if earlier.verb != verb:
                text = f"run {resume} is one of `{earlier.verb}`, not of `{verb}`"
                raise InputError(text, f"amigo-local runs resume {resume}, or start a new run")
            return self.workspace.runs_dir / resume
        while True:
            folder = self.workspace.runs_dir / self.workspace.new_run_id(verb, self._clock())
            with contextlib.suppress(FileExistsError):  # another process was as fast, where the home isn't locked
                folder.mkdir(parents=True)
                return folder

    def _run(self, stage: Stage, params: Params, title: str, resumed: bool) -> Outcome:
        started = self._steering.seconds()
        artifact, error, code = None, None, EXIT_DONE
        if stage.is_journalled:
            with self._lock:
                self._emit_always(stage.name, RunStarted(verb=stage.name, title=title, resumed=resumed))
                self._going = True
        try:
            artifact = self._run_chain(stage, params) if stage.steps else self._run_stage(stage, params)
        except _Stopped as stop:
            error, code = stop.error, stop.exit_code
        if stage.is_journalled:
            with self._lock:
                self._going = False
                elapsed = self._steering.seconds() - started
                self._emit_always(stage.name, RunFinished(exit_code=code, elapsed_seconds=elapsed))
        return Outcome(code, self._run_id, artifact, error)

    def _run_chain(self, stage: Stage, params: Params) -> Artifact | None:
        """Drives the chain's steps; the last artifact is the chain's."""
        assert stage.steps is not None
        only_one = stage.one_step is not None and stage.one_step(params)
        artifact: Artifact | None = None
        ran = False
        with self._reporting_failures(stage.name):
            chain = stage.steps(params, self.context(stage.name))
        while True:
            with self._reporting_failures(stage.name):
                try:
                    step = chain.send(artifact)
                except StopIteration:
                    if only_one:
                        self._emit(stage.name, Note("all of it is done", "good"))
                    return artifact
            prepared = self._prepare(step)
            if only_one and ran:
                if prepared.done:
                    artifact = prepared.done
                    continue
                of = f" of {step.of}" if step.of else ""
                self._emit_always(stage.name, Note(f"the next step is {step.stage}{of}"))
                chain.close()
                return artifact
            self._end_if_asked(stage.name)
            ran = prepared.done is None
            artifact = self._run_prepared(prepared) or artifact

    def _end_if_asked(self, verb: str) -> None:
        """Between two stages, where `stop` ends a chain whose stage kept no checkpoint to end at."""
        if self._steering.stop_asked():
            self._emit_always(verb, StageCancelled("stopped between two stages"))
            raise _Stopped(EXIT_CANCELLED)

    def _run_stage(self, stage: Stage, params: Params) -> Artifact | None:
        return self._run_prepared(self._prepare(Step(stage.name, params)))

    def _prepare(self, step: Step) -> _Prepared:
        """What the stage's inputs are, and whether they gave an artifact before."""
        stage = self._load_stage(step.stage)
        with self._reporting_failures(stage.name):
            self._steering.wait_while_paused()
            context = self.context(stage.name)
            sources = stage.inputs(step.params, context) if stage.inputs else {}
            mark = fingerprint(stage.name, stage.version, _plain(step.params), sources)
            done = self._still_done(stage, step.params, mark, context) if stage.produces else None
            return _Prepared(stage, step, sources, mark, done)

    def _run_prepared(self, prepared: _Prepared) -> Artifact | None:
        stage, step = prepared.stage, prepared.step
        with self._reporting_failures(stage.name):
            if prepared.done:
                self._emit(stage.name, StageSkipped(prepared.fingerprint, prepared.done, step.of))
                return prepared.done
            context = self.context(stage.name)
            needs = stage.needs(step.params, context) if stage.needs else Needs()
            check_room(stage, step.params, needs, context)
            if stage.place == "worker":  # what is answered at once needs no announcement
                summary = f"{step.of}: {stage.summary}" if step.of else stage.summary
                self._emit(stage.name, StageStarted(prepared.fingerprint, summary, needs.seconds, step.of))
        job = Job(
            run_id=self._run_id,
            stage=stage.name,
            params=_plain(step.params),
            settings=self.settings,
            home=str(self.workspace.root),
            next_seq=self._seq,
            fingerprint=prepared.fingerprint,
            sources=prepared.sources,
        )
        if stage.place == "here":
            with self._reporting_failures(stage.name):
                finished = execute(stage, job, lambda event: self._emit(stage.name, event), self._steering)
                self._steering.raise_if_cancelled()
                self._emit_always(stage.name, finished)
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
            with self._lock:
                worker = self._worker = WorkerProcess(job, log, self._worker_command)
                stack.callback(self._forget_worker)
                for command in self._steering.standing():
                    worker.tell(command)
            event: AnyEvent | None = None
            for record in worker.records():
                self._publish(record)
                event = record.event
        if isinstance(event, StageFinished):
            return event.artifact
        if isinstance(event, StageFailed):
            raise _Stopped(event.exit_code, event)
        raise _Stopped(EXIT_CANCELLED)

    def _forget_worker(self) -> None:
        with self._lock:
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
        """As the work emits: it may raise Cancelled, and waits while the run is paused."""
        self._steering.raise_if_cancelled()
        self._emit_always(stage, event)
        self._steering.wait_while_paused()

    def _emit_always(self, stage: str, event: AnyEvent) -> None:
        self._publish(Record(self._run_id, self._seq, self._clock(), stage, event))

    def _publish(self, record: Record) -> None:
        with self._lock:
            if record.seq != self._seq:  # a worker doesn't know what was told beside it
                record = msgspec.structs.replace(record, seq=self._seq)
            self._seq += 1
            if self._journal:
                self._journal.append(record)
            self.on_record(record)


def _plain(params: Strict) -> dict[str, Any]:
    plain: dict[str, Any] = msgspec.to_builtins(params)
    return plain
