"""A session when something fails below it: it is told in a sentence, and what comes next works."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from amigo_local.domain.errors import AmigoError, InputError
from amigo_local.domain.events import Progress, StageFailed
from amigo_local.domain.settings import OllamaSettings, ProgramSettings
from amigo_local.engine.lock import hold_run
from amigo_local.engine.runner_process import RunRequest, start_detached
from amigo_local.tui.asking import Asked, RunnerPool
from amigo_local.tui.saved_state import SavedState, read_state, write_state
from amigo_local.tui.session import Session
from tests.support.slow_pull import SlowPull
from tests.support.tiny_run import write_tiny_run
from tests.support.tui_driving import runner_processes

OFFLINE = ProgramSettings(ollama=OllamaSettings(use=False))


async def until(condition: Callable[[], object], seconds: float = 20) -> None:
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.02)


def with_session(home: Path, body: Callable[[Session], Awaitable[None]], settings: ProgramSettings = OFFLINE) -> None:
    async def run() -> None:
        session = Session(home, settings)
        try:
            await body(session)
        finally:
            await session.close()

    asyncio.run(run())


def test_a_key_pressed_twice_starts_one_run_and_whoever_stops_waiting_leaves_it_followed(tmp_path: Path) -> None:
    async def body(session: Session) -> None:
        # It loads, and there is no such model.
        ask = {"recipe": [str(write_tiny_run(tmp_path))], "model": str(tmp_path / "nowhere.gguf")}
        first = asyncio.ensure_future(session.start("run", ask))
        await asyncio.sleep(0)
        first.cancel()  # what a worker that is exclusive does to the one before it
        run_id = await session.start("run", ask)
        assert [path.name for path in session.workspace.runs_dir.iterdir()] == [run_id]
        await until(lambda: session.run and session.run.run_id == run_id and session.run.exit_code == 2)
        await until(lambda: not session.live)
        other = asyncio.ensure_future(session.start("run", ask))
        await asyncio.sleep(0)
        other.cancel()
        await until(lambda: session.run and session.run.run_id != run_id and session.run.exit_code == 2)

    with_session(tmp_path, body)


def test_a_journal_that_cant_be_read_is_told_and_another_run_is_followed_all_the_same(tmp_path: Path) -> None:
    (tmp_path / "runs" / "bad" / "journal.jsonl").mkdir(parents=True)
    (tmp_path / "runs" / "good").mkdir()
    told: list[StageFailed] = []

    async def body(session: Session) -> None:
        session.on_failure = told.append
        await session.follow("bad")
        await until(lambda: told)
        await session.follow("good")
        assert session.run and session.run.run_id == "good"

    with_session(tmp_path, body)
    (failure,) = told
    assert "no longer followed" in failure.message and failure.hint == "amigo-local runs watch bad"
    assert "Traceback" in failure.detail


def test_only_the_run_that_was_chosen_last_is_followed_however_fast_they_are_chosen(tmp_path: Path) -> None:
    for name in ("a", "b", "c"):
        (tmp_path / "runs" / name).mkdir(parents=True)

    async def body(session: Session) -> None:
        await session.follow("a")
        await asyncio.gather(session.follow("b"), session.follow("c"))
        chosen = session.run
        await asyncio.sleep(0.3)  # two polls
        following = [task for task in asyncio.all_tasks() if "_follow" in repr(task.get_coro())]
        assert session.run is chosen and len(following) == 1

    with_session(tmp_path, body)


def test_a_command_that_cant_be_written_is_refused_in_a_sentence(tmp_path: Path) -> None:
    folder = tmp_path / "runs" / "r"
    folder.mkdir(parents=True)
    (folder / f"control-{os.getpid()}.partial").mkdir()

    async def body(session: Session) -> None:
        with hold_run(folder, "test"), pytest.raises(InputError, match="r can't be told to cancel") as caught:
            session.command("cancel", "r")
        assert str(folder / "alive") in caught.value.hint

    with_session(tmp_path, body)


def test_closing_while_a_question_is_answered_leaves_no_process_behind(tmp_path: Path) -> None:
    with SlowPull() as server:
        server.allow(2)

        async def body(session: Session) -> None:
            async for batch in session.stream("pull", {"tag": "a"}):
                if any(isinstance(record.event, Progress) for record in batch):
                    break
            asked = session.stream("pull", {"tag": "b"})
            waiting = asyncio.ensure_future(anext(aiter(asked)))
            await until(lambda: len(runner_processes()) >= 2)  # a runner and its worker
            await session.close()
            waiting.cancel()

        with_session(tmp_path, body, ProgramSettings(ollama=OllamaSettings(host=server.url)))
    assert runner_processes() == []


def test_questions_are_answered_where_no_log_can_be_written_and_refused_where_no_process_can_start(
    tmp_path: Path,
) -> None:
    (tmp_path / "file").touch()
    asked = RunRequest(verb="runs", params={"action": "ls"}, settings=OFFLINE, home=str(tmp_path))

    async def answer(pool: RunnerPool) -> Asked:
        question = Asked(pool, asked)
        async for _ in question:
            pass
        await pool.close()
        return question

    assert asyncio.run(answer(RunnerPool(tmp_path / "file" / "runners.log"))).reply.exit_code == 0
    error = asyncio.run(answer(RunnerPool(tmp_path / "log", [str(tmp_path / "nothing")]))).reply.error
    assert error and error.message == "no process can be started to ask `runs`: No such file or directory"


def test_a_start_that_says_nothing_is_given_up_and_one_that_cant_be_is_a_sentence(tmp_path: Path) -> None:
    asked = RunRequest(verb="pull", params={"tag": "a"}, settings=OFFLINE, home=str(tmp_path))
    with pytest.raises(AmigoError, match="ended before it started"):
        start_detached(asked, [sys.executable, "-c", "import time; time.sleep(60)"], wait_seconds=0.3)
    with pytest.raises(AmigoError, match="no process can be started for the run"):
        start_detached(asked, [str(tmp_path / "nothing")])


def test_a_state_file_of_any_bytes_is_passed_over_and_two_windows_leave_a_whole_one(tmp_path: Path) -> None:
    for content in (b'{"theme": "\xff"}', b"\0" * 100, b"[" * 100_000):
        (tmp_path / "tui.json").write_bytes(content)
        assert read_state(tmp_path) == SavedState()
    (tmp_path / "tui.json.partial").mkdir()  # what another window is in the middle of
    write_state(tmp_path, SavedState(theme="amigo-light"))
    assert read_state(tmp_path).theme == "amigo-light"
