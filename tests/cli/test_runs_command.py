"""`amigo-local runs` on runs that go on: watched, paused, stopped, cancelled and resumed from other processes."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from amigo_local.domain.events import (
    AnyEvent,
    Note,
    Record,
    RunContinued,
    RunFinished,
    RunPaused,
    RunStarted,
    StageFailed,
    StageFinished,
    StageStarted,
    Table,
)
from amigo_local.domain.settings import ProgramSettings
from amigo_local.engine.journal import JOURNAL_NAME, Journal
from amigo_local.engine.lock import is_alive
from amigo_local.engine.run_record import RunRecord, write_run
from amigo_local.engine.workspace import Workspace
from amigo_local.stages.runs import _superseded
from tests.support.command_here import amigo_here, amigo_records_here
from tests.support.command_line import SCRIPT, amigo, environment
from tests.support.slow_pull import SlowPull
from tests.support.tiny_gguf import write_tiny_llama


@pytest.fixture
def server() -> Iterator[SlowPull]:
    with SlowPull() as slow:
        yield slow


def detached(home: Path, server: SlowPull, tag: str = "a") -> str:
    done = amigo(home, "pull", tag, "--detach", ollama=server.url)
    run_id = done.stdout.strip()
    assert done.returncode == 0 and re.fullmatch(r"\d{8}-\d{6}-pull", run_id)
    assert done.stderr == f"pull: started; watch it: amigo-local runs watch {run_id}\n"
    return run_id


def states(home: Path) -> list[object]:
    _, records = amigo_records_here(home, "runs", "ls")
    return [row[4] for row in records[0].event.rows]  # type: ignore[union-attr]  # it is the table


def watching(home: Path, *arguments: str) -> subprocess.Popen[str]:
    """`runs watch` in a process of its own, once it has shown something of the run."""
    command = [str(SCRIPT), "runs", *arguments]
    process = subprocess.Popen(
        command, env=environment(home), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    assert process.stderr
    while not (line := process.stderr.readline()).startswith("pull: "):
        assert line, "it shows nothing"
    return process


def test_a_run_took_what_it_worked_not_what_it_waited(tmp_path: Path) -> None:
    told: list[tuple[float, AnyEvent]] = [
        (100.0, RunStarted(verb="pull", title="pull a")),
        (110.0, RunPaused()),
        (510.0, RunContinued()),
        (515.0, Note("cut after this")),
        (9000.0, RunStarted(verb="pull", title="pull a")),
        (9030.0, RunFinished(exit_code=0, elapsed_seconds=30.0)),
    ]
    with Journal(Workspace(tmp_path).runs_dir / "a" / JOURNAL_NAME) as journal:
        for time, event in told:
            journal.append(Record("a", journal.next_seq, time, "pull", event))
    _, records = amigo_records_here(tmp_path, "runs", "ls")
    (table,) = [record.event for record in records if isinstance(record.event, Table)]
    assert [row[3:] for row in table.rows] == [(45.0, "done")]


def test_what_is_shown_of_a_run_names_the_recipe_and_what_to_do(tmp_path: Path) -> None:
    told: list[tuple[str, AnyEvent]] = [
        ("run", RunStarted(verb="run", title="run all")),
        ("train", StageStarted("a", "Refine", of="stage1")),
        ("train", StageFinished(None, 2.0, 1)),
        ("train", StageStarted("b", "Refine", of="stage2")),
        ("train", StageFailed("no room", "a smaller rank", 3)),
        ("run", StageFailed("it ends here", "", 3)),
    ]
    workspace = Workspace(tmp_path)
    with Journal(workspace.runs_dir / "a" / JOURNAL_NAME) as journal:
        write_run(workspace, RunRecord(run_id="a", verb="run", title="run all", params={}, settings=ProgramSettings()))
        for stage, event in told:
            journal.append(Record("a", journal.next_seq, 100.0, stage, event))
    _, records = amigo_records_here(tmp_path, "runs", "show")
    (table,) = [record.event for record in records if isinstance(record.event, Table)]
    assert [row[:2] for row in table.rows] == [
        ("train of stage1", "done"),
        ("train of stage2", "failed: no room; hint: a smaller rank"),
        ("run", "failed: it ends here"),
    ]


def test_a_run_left_alone_is_listed_paused_continued_and_watched_to_its_end(tmp_path: Path, server: SlowPull) -> None:
    run_id = detached(tmp_path, server)
    assert states(tmp_path) == ["running"]
    said = amigo_here(tmp_path, "runs", "pause").stderr
    assert f"run {run_id} (`pull a`) will pause" in said and f"amigo-local runs resume {run_id}" in said
    server.allow()
    process = watching(tmp_path, "watch")
    assert process.stderr
    while "paused: " not in (line := process.stderr.readline()):
        assert line
    assert states(tmp_path) == ["paused"]
    code, records = amigo_records_here(tmp_path, "runs", "resume")
    assert code == 0 and [type(r.event) for r in records if isinstance(r.event, RunStarted | RunFinished)] == [
        RunStarted,
        RunFinished,
    ]
    rest = process.stderr.read()
    assert process.wait(timeout=20) == 0 and "goes on" in rest and "finished in" in rest
    process.stderr.close()
    assert states(tmp_path) == ["done"] and server.asked == ["a:latest"]
    code, records = amigo_records_here(tmp_path, "runs", "watch", run_id)
    assert code == 0 and [r.seq for r in records] == list(range(len(records))), "a run that has ended is shown again"


@pytest.mark.skipif(sys.platform == "win32", reason="SIGINT to another process is POSIX")
def test_ctrl_c_ends_the_watching_and_not_the_run_which_a_cancel_ends(tmp_path: Path, server: SlowPull) -> None:
    run_id = detached(tmp_path, server)
    process = watching(tmp_path, "watch", run_id)
    process.send_signal(signal.SIGINT)
    assert process.stderr
    said = process.stderr.read()
    process.stderr.close()
    assert process.wait(timeout=20) == 130 and "no longer watched; the run goes on" in said and "Traceback" not in said
    assert is_alive(tmp_path / "runs" / run_id)
    process = watching(tmp_path, "watch", run_id)
    assert "will end at its next event" in amigo_here(tmp_path, "runs", "cancel").stderr
    server.allow()
    assert process.stderr
    process.stderr.read()
    process.stderr.close()
    assert process.wait(timeout=20) == 130, "the exit code is the run's"
    assert states(tmp_path) == ["cancelled"]
    refused = amigo_here(tmp_path, "runs", "stop", run_id)
    assert refused.returncode == 2 and f"run {run_id} isn't going on (`pull a`)" in refused.stderr
    code, records = amigo_records_here(tmp_path, "runs", "resume", ollama=server.url)
    assert code == 0 and server.pulled == ["a:latest"] and server.asked == ["a:latest"] * 2
    assert {record.run_id for record in records} == {run_id}
    assert sum(isinstance(record.event, StageFinished) for record in records) == 1


def test_a_watched_run_whose_process_is_killed_is_told_as_cut(tmp_path: Path, server: SlowPull) -> None:
    run = subprocess.Popen([str(SCRIPT), "pull", "a"], env=environment(tmp_path, server.url), stderr=subprocess.DEVNULL)
    while not list(tmp_path.glob("runs/*/journal.jsonl")):
        assert run.poll() is None
    process = watching(tmp_path, "watch")
    run.kill()
    run.wait()
    assert process.stderr
    said = process.stderr.read()
    process.stderr.close()
    assert process.wait(timeout=20) == 1 and "its process ended without a word" in said
    (state,) = states(tmp_path)
    assert str(state).startswith("cut: amigo-local runs resume")
    assert amigo_here(tmp_path, "runs", "watch", "no-such-run").returncode == 2


def test_a_pull_after_a_loop_makes_nothing_of_the_loop_look_old(tmp_path: Path, server: SlowPull) -> None:
    gguf = write_tiny_llama(tmp_path / "tiny.gguf")
    assert amigo_here(tmp_path / "home", "tokenizer", str(gguf)).returncode == 0
    server.allow()
    assert amigo_here(tmp_path / "home", "pull", "a", ollama=server.url).returncode == 0
    assert _superseded(Workspace(tmp_path / "home")) == []


def test_a_recipe_that_cannot_be_read_is_refused_before_it_is_left_alone(tmp_path: Path) -> None:
    done = amigo(tmp_path, "run", "nowhere", "--detach")
    assert done.returncode == 2 and done.stdout == ""
    assert "no recipe at nowhere" in done.stderr and "shipped recipe" in done.stderr
    assert not list((tmp_path / "runs").glob("*"))
