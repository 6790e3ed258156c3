"""Real runner processes: runs that outlive their starter, and verbs that are asked one after the other."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import psutil
import pytest

from amigo_local.domain.errors import AmigoError, InputError
from amigo_local.domain.events import Progress, Record, RunFinished, RunPaused, StageFailed, StageFinished, Table
from amigo_local.domain.settings import OllamaSettings, ProgramSettings
from amigo_local.engine.control import send_command
from amigo_local.engine.journal import JOURNAL_NAME, read_journal
from amigo_local.engine.lock import hold_home, is_alive
from amigo_local.engine.runner_process import RUNNER_COMMAND, RunEnded, RunRequest, decode_answer, start_detached
from tests.support.slow_pull import SlowPull

posix = pytest.mark.skipif(sys.platform == "win32", reason="signals and sessions are POSIX")


@pytest.fixture
def server() -> Iterator[SlowPull]:
    with SlowPull() as slow:
        yield slow


def request(
    home: Path, verb: str, server: SlowPull | None = None, resume: str | None = None, **params: Any
) -> RunRequest:
    ollama = OllamaSettings(host=server.url) if server else OllamaSettings(use=False)
    return RunRequest(
        verb=verb, params=params, settings=ProgramSettings(ollama=ollama), home=str(home), title=verb, resume=resume
    )


def until(what: Callable[[], object], seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < deadline, "it never came"
        time.sleep(0.02)


def journal(home: Path, run_id: str) -> list[Record]:
    return list(read_journal(home / "runs" / run_id / JOURNAL_NAME))


def exit_code(home: Path, run_id: str) -> int | None:
    """Of a run that has ended."""
    until(lambda: not is_alive(home / "runs" / run_id))
    codes = [record.event.exit_code for record in journal(home, run_id) if isinstance(record.event, RunFinished)]
    return codes[-1] if codes else None


def is_pulling(home: Path, run_id: str) -> bool:
    return any(isinstance(r.event, Progress) and r.event.done for r in journal(home, run_id))


# -- Detached

STARTER = textwrap.dedent("""
    import sys, time, msgspec
    from amigo_local.engine.runner_process import RunRequest, start_detached
    print(start_detached(msgspec.json.decode(sys.argv[1], type=RunRequest)), flush=True)
    time.sleep(60)
""")


@posix
def test_a_detached_run_finishes_though_its_starter_and_the_terminal_are_gone(tmp_path: Path, server: SlowPull) -> None:
    asked = msgspec.json.encode(request(tmp_path, "pull", server, tag="a")).decode()
    starter = subprocess.Popen(
        [sys.executable, "-c", STARTER, asked], stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    assert starter.stdout
    run_id = starter.stdout.readline().strip()
    run = tmp_path / "runs" / run_id
    (owner,) = psutil.Process(starter.pid).children()
    worker = until(lambda: owner.children()) or owner.children()[0]
    os.killpg(starter.pid, signal.SIGKILL)
    starter.wait()
    os.kill(owner.pid, signal.SIGHUP)  # as its terminal does when it is closed
    server.allow()
    assert exit_code(tmp_path, run_id) == 0 and server.pulled == ["a:latest"]
    psutil.wait_procs([owner, worker], timeout=10)
    assert not owner.is_running() and not worker.is_running()
    events = [record.event for record in journal(tmp_path, run_id)]
    assert sum(isinstance(event, StageFinished) for event in events) == 1
    assert (run / "worker.log").exists() and not (run / "control").exists()


@posix
def test_a_detached_run_holds_on_to_nothing_of_its_starter(tmp_path: Path, server: SlowPull) -> None:
    run_id = start_detached(request(tmp_path, "pull", server, tag="a"))
    (owner,) = [p for p in psutil.Process().children() if "amigo_local.runner_process" in p.cmdline()]
    assert os.getsid(owner.pid) == owner.pid
    targets = [str(Path(f"/proc/{owner.pid}/fd/{fd}").readlink()) for fd in (0, 1, 2)] if Path("/proc").is_dir() else []
    log = str(tmp_path / "runs" / run_id / "worker.log")
    assert targets in (["/dev/null", log, log], [])
    until(lambda: owner.children())
    os.kill(owner.pid, signal.SIGTERM)  # as a system does that goes down: cancelled, not cut
    server.allow()
    assert exit_code(tmp_path, run_id) == 130
    again = start_detached(request(tmp_path, "runs", action="resume", id=run_id))
    server.allow()
    assert again == run_id and exit_code(tmp_path, run_id) == 0 and server.asked == ["a:latest"] * 2


def test_a_worker_in_the_middle_of_its_work_is_paused_continued_and_cancelled(tmp_path: Path, server: SlowPull) -> None:
    run_id = start_detached(request(tmp_path, "pull", server, tag="a"))
    folder = tmp_path / "runs" / run_id
    server.allow(1)
    until(lambda: is_pulling(tmp_path, run_id))

    def told() -> list[str]:
        return [type(record.event).__name__ for record in journal(tmp_path, run_id)]

    send_command(folder, "pause")
    until(lambda: "RunPaused" in told())
    server.allow()  # all of it is there, and it takes one more piece at most
    time.sleep(0.5)
    assert (
        is_alive(folder)
        and "StageFinished" not in told()
        and told()[told().index("RunPaused") :].count("Progress") <= 1
    )
    send_command(folder, "continue")
    assert exit_code(tmp_path, run_id) == 0
    finished = next(r.event for r in journal(tmp_path, run_id) if isinstance(r.event, StageFinished))
    times = {type(r.event).__name__: r.time for r in journal(tmp_path, run_id)}
    assert times["RunContinued"] - times["RunPaused"] > 0.5
    assert finished.elapsed_seconds < times["StageFinished"] - times["StageStarted"] - 0.15, "a pause counted as work"
    seqs = [record.seq for record in journal(tmp_path, run_id)]
    assert seqs == list(range(len(seqs)))

    server.hold()
    second = start_detached(request(tmp_path, "pull", server, tag="b"))
    until(lambda: "b:latest" in server.asked)
    send_command(tmp_path / "runs" / second, "pause")
    until(lambda: any(isinstance(r.event, RunPaused) for r in journal(tmp_path, second)))
    send_command(tmp_path / "runs" / second, "cancel")
    server.allow()
    assert exit_code(tmp_path, second) == 130 and "b:latest" not in server.pulled


def test_what_is_refused_is_raised_with_its_hint_and_leaves_no_run(tmp_path: Path) -> None:
    def refused(asked: RunRequest) -> InputError:
        with pytest.raises(InputError) as caught:
            start_detached(asked)
        return caught.value

    unpack = request(tmp_path, "unpack", ref="missing.gguf")
    tmp_path.joinpath("runs").mkdir()
    with hold_home(tmp_path, "amigo-local run stage1"):
        error = refused(unpack)
    assert "in use by `amigo-local run stage1`" in error.message and "runs watch" in error.hint
    error = refused(request(tmp_path, "pull", tags="a"))
    assert (
        error.message.startswith("pull: Object contains unknown field `tags`")
        and error.hint == "amigo-local pull --help"
    )
    error = refused(request(tmp_path, "pul", tag="a"))
    assert "no stage is called 'pul'" in error.message and "pull" in error.hint
    error = refused(request(tmp_path, "models"))
    assert "makes no run" in error.message
    error = refused(request(tmp_path, "pull", tag="a", resume="19990101-000000-pull"))
    assert "there is no run 19990101-000000-pull" in error.message
    file = tmp_path / "file"
    file.touch()
    assert "can't be written" in refused(request(file, "unpack", ref="missing.gguf")).message
    assert list(tmp_path.joinpath("runs").iterdir()) == []


def test_a_process_that_dies_before_it_answers_says_what_it_left_in_its_log(tmp_path: Path) -> None:
    command = [sys.executable, "-c", "raise RuntimeError('no such thing')"]
    with pytest.raises(AmigoError) as caught:
        start_detached(request(tmp_path, "pull", tag="a"), command)
    assert "exit code 1" in caught.value.message and "no such thing" in caught.value.hint


# -- Asked


class Asking:
    """A runner process that is asked one thing after another."""

    def __init__(self) -> None:
        self.process = subprocess.Popen(RUNNER_COMMAND, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        self._watchdog = threading.Timer(30, self.process.kill)
        self._watchdog.start()

    def send(self, *lines: bytes) -> None:
        assert self.process.stdin
        self.process.stdin.write(b"".join(line + b"\n" for line in lines))
        self.process.stdin.flush()

    def answer(self) -> tuple[list[Record], RunEnded]:
        assert self.process.stdout
        records: list[Record] = []
        while True:
            answer = decode_answer(self.process.stdout.readline())
            if isinstance(answer, RunEnded):
                return records, answer
            records.append(answer)

    def __enter__(self) -> Asking:
        return self

    def __exit__(self, *_: object) -> None:
        self._watchdog.cancel()
        self.process.kill()
        self.process.wait()
        for stream in (self.process.stdin, self.process.stdout):
            if stream:
                with contextlib.suppress(BrokenPipeError):
                    stream.close()


def test_verbs_are_asked_one_after_the_other_and_none_leaves_a_trace_in_the_next(
    tmp_path: Path, server: SlowPull
) -> None:
    encode = msgspec.json.encode
    with Asking() as asking:
        asking.send(encode(request(tmp_path, "models")))
        records, ended = asking.answer()
        assert ended.exit_code == 0 and any(isinstance(record.event, Table) for record in records)

        asking.send(b"cancel", encode(request(tmp_path, "pull", server, tag="a")))
        until(lambda: server.asked)
        asking.send(b"cancel")
        server.allow()
        records, ended = asking.answer()
        assert ended.exit_code == 130 and ended.error is None and exit_code(tmp_path, ended.run_id) == 130

        asking.send(b"not json", encode(request(tmp_path, "pull", server)), encode(request(tmp_path, "no-such-verb")))
        for message in ("that is no request", "missing required field `tag`", "no stage is called"):
            records, ended = asking.answer()
            assert records == [] and ended.exit_code == 2 and ended.error and message in ended.error.message

        asking.send(encode(request(tmp_path, "pull", server, tag="b")))
        records, ended = asking.answer()
        assert ended.exit_code == 0 and server.pulled == ["b:latest"]
        assert journal(tmp_path, ended.run_id) == records

        other = tmp_path / "other"
        asking.send(encode(request(other, "pull", None, tag="c")), encode(request(other, "runs")))
        records, ended = asking.answer()
        failed = next(record.event for record in records if isinstance(record.event, StageFailed))
        assert ended.exit_code == 2 and ended.error == failed
        records, ended = asking.answer()
        (table,) = [record.event for record in records if isinstance(record.event, Table)]
        assert ended.exit_code == 0 and [row[4] for row in table.rows] == ["failed"]
        assert asking.process.stdin
        asking.process.stdin.close()
        assert asking.process.wait(timeout=10) == 130


def test_a_cancel_that_comes_right_behind_a_question_is_for_it(tmp_path: Path, server: SlowPull) -> None:
    server.allow()
    with Asking() as asking:
        asking.send(msgspec.json.encode(request(tmp_path, "pull", server, tag="a")), b"cancel")
        assert asking.answer()[1].exit_code == 130 and server.pulled == []
        asking.send(msgspec.json.encode(request(tmp_path, "models")))
        assert asking.answer()[1].exit_code == 0


@posix
def test_the_end_of_stdin_ends_the_process_with_its_worker(tmp_path: Path, server: SlowPull) -> None:
    with Asking() as asking:
        asking.send(msgspec.json.encode(request(tmp_path, "pull", server, tag="a")))
        until(lambda: server.asked)
        workers = psutil.Process(asking.process.pid).children()
        assert workers and asking.process.stdin
        asking.process.stdin.close()
        assert asking.process.wait(timeout=10) == 130
        _, alive = psutil.wait_procs(workers, timeout=10)
        assert not alive
    (run_id,) = [path.name for path in (tmp_path / "runs").iterdir()]
    assert not is_alive(tmp_path / "runs" / run_id) and server.pulled == []
