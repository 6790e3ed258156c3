"""A session against real runs: the tiny model's loop, in processes of their own."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from amigo_local.domain.errors import InputError
from amigo_local.domain.run_state import RunState
from amigo_local.domain.settings import OllamaSettings, ProgramSettings
from amigo_local.tui.session import Session
from tests.support.flood import begin, end_of, start_flood
from tests.support.tiny_run import write_tiny_run

OFFLINE = ProgramSettings(ollama=OllamaSettings(use=False))


async def until(condition: Callable[[], bool], seconds: float = 60) -> None:
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.02)


def with_session(home: Path, body: Callable[[Session], Awaitable[None]]) -> None:
    async def run() -> None:
        session = Session(home, OFFLINE)
        try:
            await body(session)
        finally:
            await session.close()

    asyncio.run(run())


def test_a_run_is_started_followed_and_found_again_by_another_session(tmp_path: Path) -> None:
    home, recipe = tmp_path / "home", write_tiny_run(tmp_path)
    updates: list[int] = []

    async def begin(session: Session) -> None:
        session.on_update = lambda state, records: updates.append(len(records))
        session.saved.choice.recipe = [str(recipe)]
        run_id = await session.start_loop("prepare", session.loop_params())
        assert session.run and session.run.run_id == run_id
        await until(lambda: bool(session.run and session.run.exit_code is not None))
        assert [(s.stage, s.status) for s in session.run.stages] == [("tokenizer", "done"), ("prepare", "done")]
        await until(lambda: not session.live)
        with pytest.raises(InputError, match="isn't going on"):
            session.command("pause")
        # What was asked again goes on in the same journal.
        assert await session.start_loop("prepare", session.loop_params()) == run_id
        await until(lambda: bool(session.run and session.run.attempt == 2 and session.run.exit_code == 0))

    async def find(session: Session) -> None:
        assert session.saved.choice.recipe == [str(recipe)]
        await session.follow_newest()
        await until(lambda: bool(session.run and session.run.exit_code == 0))

    with_session(home, begin)
    assert sum(updates) > 4
    with_session(home, find)


def test_a_run_begun_elsewhere_is_followed_and_its_recipe_taken_over(tmp_path: Path) -> None:
    home, recipe = tmp_path / "home", write_tiny_run(tmp_path)

    async def elsewhere(session: Session) -> None:
        await session.start("prepare", {"recipe": [str(recipe)], "overrides": ["data.max_length_tokens=200"]})
        await until(lambda: bool(session.run and session.run.exit_code == 0))

    async def here(session: Session) -> None:
        (run_id,) = (path.name for path in session.workspace.runs_dir.iterdir())
        await session.follow(run_id)
        assert session.saved.choice.recipe == [str(recipe)]
        assert session.saved.choice.overrides == ["data.max_length_tokens=200"]

    with_session(home, elsewhere)
    (home / "tui.json").unlink()
    with_session(home, here)


def test_two_runs_at_once_are_refused_with_who_holds_the_home(tmp_path: Path) -> None:
    home, recipe = tmp_path / "home", write_tiny_run(tmp_path)

    async def body(session: Session) -> None:
        await session.start("run", {"recipe": [str(recipe)]})
        with pytest.raises(InputError, match="in use by"):
            await session.start("prepare", {"recipe": [str(recipe)]})
        session.command("cancel")
        await until(lambda: bool(session.run and session.run.exit_code == 130))
        await until(lambda: not session.live)
        with pytest.raises(InputError, match="no recipe at nowhere"):
            await session.start("run", {"recipe": ["nowhere"]})

    with_session(home, body)


def test_a_state_file_that_is_torn_or_of_another_version_is_passed_over(tmp_path: Path) -> None:
    (tmp_path / "tui.json").write_text('{"theme": "amigo-li')
    assert Session(tmp_path, OFFLINE).saved.theme == ""
    (tmp_path / "tui.json").write_text('{"theme": 3}')
    assert Session(tmp_path, OFFLINE).saved.theme == ""


def test_the_followed_state_is_whole_after_a_flood(tmp_path: Path) -> None:
    """Every record is applied, however many come between two updates."""
    from amigo_local.domain.events import MetricLogged, Progress, Record, RunFinished, RunStarted, encode_record

    folder = tmp_path / "runs" / "r1"
    folder.mkdir(parents=True)
    records = [Record("r1", 0, 1.0, "run", RunStarted(verb="run", title="run x"))]
    for seq in range(1, 30_000):
        event = MetricLogged(seq, {"loss": 1.0}) if seq % 10 == 0 else Progress("p", seq, 30_000, "steps")
        records.append(Record("r1", seq, 1.0, "train", event))
    records.append(Record("r1", 30_000, 9.0, "run", RunFinished(0, 8.0)))
    (folder / "journal.jsonl").write_bytes(b"".join(encode_record(record) + b"\n" for record in records))
    seen: list[RunState] = []

    async def body(session: Session) -> None:
        session.on_update = lambda state, fresh: seen.append(state)
        await session.follow("r1")
        await until(lambda: bool(session.run and session.run.exit_code == 0))
        assert session.run and session.run.records == 30_001
        await until(lambda: bool(seen))

    with_session(tmp_path, body)
    assert len(seen) < 60


def test_records_wait_while_a_key_is_answered_and_none_is_lost(tmp_path: Path) -> None:
    flood = start_flood(tmp_path, "20260101-000000-flood", 5000, 1)
    told: list[tuple[float, int]] = []

    async def body(session: Session) -> None:
        session.on_update = lambda state, records: told.append((time.monotonic(), state.last_seq))
        await session.follow("20260101-000000-flood")
        await until(lambda: bool(told))
        began = time.monotonic()
        session.hold(20, at_most=2)
        begin(flood)
        await asyncio.sleep(0.5)
        assert session.run and session.run.last_seq <= 1  # what was there before
        session.hold(20, at_most=2)  # the next key
        await until(lambda: bool(session.run and session.run.last_seq > 1))
        assert 0.5 < time.monotonic() - began < 5  # but not for ever
        session.hold(1, at_most=0.6)  # the run ends meanwhile
        end = await asyncio.to_thread(end_of, flood)
        await until(lambda: bool(session.run and session.run.last_seq == end.records - 1), 10)
        await until(lambda: not session.live and told[-1][1] == end.records - 1, 10)

    with_session(tmp_path, body)


def test_a_run_that_begins_elsewhere_is_noticed_and_what_was_chosen_stays(tmp_path: Path) -> None:
    home, recipe = tmp_path / "home", write_tiny_run(tmp_path)

    async def body(session: Session) -> None:
        session.saved.choice.recipe, session.saved.choice.overrides = ["laptop"], ["train.epochs=2"]
        assert not await session.notice()
        elsewhere = Session(home, OFFLINE)
        run_id = await elsewhere.start("prepare", {"recipe": [str(recipe)]})
        assert await session.notice()
        assert session.run and session.run.run_id == run_id and session.live
        assert session.follows_loop and not session.follows_choice
        assert session.saved.choice.recipe == ["laptop"] and session.saved.choice.overrides == ["train.epochs=2"]
        assert not await session.notice()  # it is followed already
        elsewhere.command("cancel")
        await until(lambda: not session.live)
        await elsewhere.close()

    with_session(home, body)
