"""`python -m amigo_local.runner_process`: runs verbs for whoever asks; alone it is a run that outlives its starter.

File descriptor 1 belongs to answers alone, as in a worker. What comes in and goes out: engine/runner_process.py.
"""

from __future__ import annotations

import contextlib
import os
import queue
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

import msgspec

from amigo_local.domain.errors import EXIT_CANCELLED, EXIT_DONE, EXIT_USAGE, AmigoError, InputError
from amigo_local.domain.events import Record, StageFailed, encode_record
from amigo_local.engine.contract import Params, RecipeRequest, Stage
from amigo_local.engine.data_paths import found_from_anywhere
from amigo_local.engine.entry import expected, take_stdout, unexpected, write_line
from amigo_local.engine.recipe_chain import load_chain
from amigo_local.engine.runner import Outcome, Runner
from amigo_local.engine.runner_process import RunBegun, RunEnded, RunRequest
from amigo_local.engine.workspace import Workspace
from amigo_local.stages import load_stage


def main() -> int:
    """Answers requests until stdin ends, or runs the one that is detached."""
    stdout = take_stdout()
    first = sys.stdin.buffer.readline()
    if not first:
        return EXIT_DONE
    try:
        request = msgspec.json.decode(first, type=RunRequest)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        request = None  # answered in its turn
    if request and request.detached:
        return run_detached(request, stdout)
    return Answering(stdout).until_the_end(first, sys.stdin.buffer)


def run(request: RunRequest, on_record: Callable[[Record], None], begin: Callable[[Runner], object]) -> Outcome:
    """`begin` gets the runner before it starts. What is refused or unforeseen becomes an outcome without a run."""
    try:
        stage = load_stage(request.verb)
        runner = Runner(Workspace(Path(request.home)), request.settings, load_stage, on_record)
        params = _params(stage, request)
        begin(runner)
        return runner.run(request.verb, params, request.title, resume=request.resume)
    except AmigoError as error:
        return Outcome(error.exit_code, "", error=expected(error))
    except Exception as error:  # noqa: BLE001  # an entry point: whoever asked gets a sentence and the traceback
        failed = unexpected(error)
        return Outcome(failed.exit_code, "", error=failed)


def _params(stage: Stage, request: RunRequest) -> Params:
    try:
        params = found_from_anywhere(msgspec.convert(request.params, stage.asked))
    except msgspec.ValidationError as error:
        text = str(error).replace(" - at `$.", " - at `")
        raise InputError(f"{stage.name}: {text}", f"amigo-local {stage.name} --help") from error
    if request.detached and not stage.is_journalled and stage.again is None:
        raise InputError(f"{stage.name} makes no run that could be left alone", "ask it without `detached`")
    if request.detached and isinstance(params, RecipeRequest):
        load_chain(params.recipe, params.overrides)  # refused while whoever asked still listens
    return params


def run_detached(request: RunRequest, stdout: int) -> int:
    """Says the run's id, or why there is none, and goes on alone."""
    _leave_the_starter()
    answered = False

    def answer(begun: RunBegun) -> None:
        nonlocal answered
        answered = True
        with contextlib.suppress(BrokenPipeError):  # whoever asked is gone already
            write_line(stdout, msgspec.json.encode(begun))
        os.close(stdout)

    def on_record(record: Record) -> None:
        if not answered:
            _log_to(Path(request.home) / "runs" / record.run_id / "worker.log")
            answer(RunBegun(run_id=record.run_id))

    def begin(runner: Runner) -> None:
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda *_: runner.cancel())

    outcome = run(request, on_record, begin)
    if not answered:
        answer(RunBegun(run_id="", error=outcome.error))
    elif outcome.error and not outcome.run_id:
        print(outcome.error.detail, file=sys.stderr)
    return outcome.exit_code


def _leave_the_starter() -> None:
    """Neither the end of its terminal nor that of its process group is any of the run's business."""
    if os.name == "posix":
        with contextlib.suppress(PermissionError):
            os.setsid()  # it has one of its own already when it was started so
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)


def _log_to(path: Path) -> None:
    sys.stderr.flush()
    log = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    for descriptor in (1, 2):
        os.dup2(log, descriptor)
    os.close(log)


class _Question:
    """A request's line, and whether it was cancelled, which may be before its turn."""

    def __init__(self, line: bytes) -> None:
        self.line = line
        self._cancelled = False
        self._runner: Runner | None = None
        self._lock = threading.Lock()

    def begin(self, runner: Runner) -> None:
        with self._lock:
            self._runner = runner
            if self._cancelled:
                runner.cancel()

    def cancel(self) -> None:
        with self._lock:
            self._cancelled = True
            if self._runner:
                self._runner.cancel()

    def end_worker(self) -> None:
        if self._runner:
            self._runner.end_worker()


class Answering:
    """Requests in turn. A line `cancel` is for the one that is being answered, else for the one that is next."""

    def __init__(self, stdout: int) -> None:
        self._stdout = stdout
        self._open: list[_Question] = []  # the current one first
        self._waiting: queue.SimpleQueue[_Question] = queue.SimpleQueue()
        self._lock = threading.Lock()

    def until_the_end(self, first: bytes, stdin: BinaryIO) -> int:
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda *_: self._leave())
        self._hear(first)
        threading.Thread(target=self._listen, args=(stdin,), daemon=True).start()
        while True:
            question = self._waiting.get()
            self._write(msgspec.json.encode(self._answer(question)))
            with self._lock:
                self._open.remove(question)

    def _listen(self, stdin: BinaryIO) -> None:
        for line in stdin:
            self._hear(line)
        self._leave()

    def _hear(self, line: bytes) -> None:
        with self._lock:
            if line.strip() == b"cancel":
                if self._open:
                    self._open[0].cancel()
            elif line.strip():
                question = _Question(line)
                self._open.append(question)
                self._waiting.put(question)

    def _leave(self) -> None:
        """Whoever asked is gone, and nobody waits for the rest."""
        for question in self._open:
            question.end_worker()
        os._exit(EXIT_CANCELLED)

    def _answer(self, question: _Question) -> RunEnded:
        try:
            request = msgspec.json.decode(question.line, type=RunRequest)
        except (msgspec.MsgspecError, UnicodeDecodeError) as error:
            failed = StageFailed(f"that is no request: {error}", "", EXIT_USAGE)
            return RunEnded(exit_code=EXIT_USAGE, run_id="", error=failed)
        request = msgspec.structs.replace(request, detached=False)
        outcome = run(request, lambda record: self._write(encode_record(record)), question.begin)
        return RunEnded(exit_code=outcome.exit_code, run_id=outcome.run_id, error=outcome.error)

    def _write(self, line: bytes) -> None:
        try:
            write_line(self._stdout, line)
        except BrokenPipeError:
            self._leave()


if __name__ == "__main__":
    sys.stderr.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]  # stderr is a TextIOWrapper here
    code = main()
    sys.stderr.flush()
    os._exit(code)
