"""The Runs screen on real runs: cut, resumed, steered, cleaned up."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from amigo_local.domain.events import (
    AnyEvent,
    Column,
    Note,
    Record,
    RunFinished,
    RunPaused,
    RunStarted,
    StageCancelled,
    StageFailed,
    Table,
)
from amigo_local.domain.run_state import RunState
from amigo_local.engine.control import take_command
from amigo_local.engine.journal import JOURNAL_NAME, Journal
from amigo_local.engine.live_runs import Sign, signs_of, standing
from amigo_local.engine.lock import hold_run
from amigo_local.engine.run_record import RunRecord, write_run
from amigo_local.engine.workspace import Workspace
from amigo_local.tui.app import AmigoApp
from amigo_local.tui.asking import Reply
from amigo_local.tui.screens.cleaning import Cleaning
from amigo_local.tui.screens.confirm import Confirm
from amigo_local.tui.screens.leaving import Leaving
from amigo_local.tui.screens.runs import RunsScreen
from amigo_local.tui.widgets.run_details import RunDetails, run_answer
from tests.support.pinned_session import PinnedSession, recorded
from tests.support.tiny_gguf import write_tiny_llama
from tests.support.tui_driving import OFFLINE, driven, headless, runner_of, screen_text, until


def runs_screen(app: AmigoApp) -> RunsScreen:
    assert isinstance(app.screen, RunsScreen)
    return app.screen


def test_an_empty_home_says_what_to_do_first(tmp_path: Path) -> None:
    async def body() -> None:
        async with driven(tmp_path, screen="runs", size=(80, 24)) as (app, pilot):
            await until(pilot, lambda: "Nothing was run here yet" in screen_text(app))
            assert not runs_screen(app).check_action("resume", ())

    asyncio.run(body())


@pytest.mark.skipif(os.name != "posix", reason="needs POSIX signals")
def test_a_run_that_was_cut_is_resumed_by_a_key_and_what_nothing_needs_is_freed(tmp_path: Path) -> None:
    home, gguf = tmp_path / "home", write_tiny_llama(tmp_path / "tiny.gguf")

    async def body() -> None:
        async with driven(home, screen="runs") as (app, pilot):
            await app.session.start("tokenizer", {"ref": str(gguf)}, f"tokenizer {gguf}")
            runner = runner_of(home)
            assert runner
            runner.suspend()
            await until(pilot, lambda: runs_screen(app).state == "running")
            for process in (*runner.children(), runner):
                process.send_signal(signal.SIGKILL)
            await until(pilot, lambda: runs_screen(app).state == "cut")  # no key is needed to see it
            await pilot.press("r")
            await until(pilot, lambda: runs_screen(app).state == "running")
            await until(pilot, lambda: runs_screen(app).state == "done")
            await until(pilot, lambda: "vocabulary" in _details(app))
            (home / "artifacts" / "train-0123456789abcdef.partial").mkdir()
            await pilot.press("c")
            await until(pilot, lambda: isinstance(app.screen, Cleaning) and "1 to free" in screen_text(app))
            await pilot.press("escape")
            assert (home / "artifacts" / "train-0123456789abcdef.partial").exists()
            await pilot.press("c")
            await until(pilot, lambda: isinstance(app.screen, Cleaning) and "1 to free" in screen_text(app))
            await pilot.press("y")
            await until(pilot, lambda: isinstance(app.screen, RunsScreen))
            assert not (home / "artifacts" / "train-0123456789abcdef.partial").exists()
            await pilot.press("enter")
            await until(pilot, lambda: app.session.run is not None and app.session.run.exit_code == 0)

    asyncio.run(body())


def test_a_live_run_is_steered_by_keys_and_asks_before_it_is_cancelled(tmp_path: Path) -> None:
    workspace = Workspace(tmp_path)
    folder = workspace.runs_dir / "20260101-000000-train"

    def wrote(*events: AnyEvent) -> None:
        with Journal(folder / JOURNAL_NAME) as journal:
            for event in events:
                journal.append(Record(folder.name, journal.next_seq, 1_795_800_000.0, "train", event))

    async def body() -> None:
        async with driven(tmp_path, screen="runs", size=(80, 24)) as (app, pilot):
            await until(pilot, lambda: runs_screen(app).state == "running")
            await until(pilot, lambda: "Pause" in screen_text(app).splitlines()[-1])
            footer = screen_text(app).splitlines()[-1]
            assert "Quit" in footer and "Resume" not in footer and "Continue" not in footer
            await pilot.press("r")  # not for one that runs
            await pilot.press("space")
            assert take_command(folder) == "pause"
            wrote(RunPaused())
            await pilot.press("f5")
            await until(pilot, lambda: "Continue" in screen_text(app).splitlines()[-1])
            await pilot.press("space")
            assert take_command(folder) == "continue"
            await pilot.press("s")
            assert take_command(folder) == "stop"
            await pilot.press("x")
            await until(pilot, lambda: isinstance(app.screen, Confirm))
            await pilot.press("escape", "x")
            await until(pilot, lambda: isinstance(app.screen, Confirm))
            assert take_command(folder) is None
            await pilot.press("y")
            await until(pilot, lambda: isinstance(app.screen, RunsScreen))
            assert take_command(folder) == "cancel"
            wrote(StageCancelled(), RunFinished(130, 1.0))

    wrote(RunStarted("train", "train smoke"))
    write_run(workspace, RunRecord(run_id=folder.name, verb="train", title="train", params={}, settings=OFFLINE))
    with hold_run(folder, "amigo-local train"):
        asyncio.run(body())


_STAGES = (
    Column("stage"),
    Column("outcome"),
    Column("took", "seconds"),
    Column("peak RAM", "bytes"),
    Column("artifact"),
)
_WRONG = "12 of 40 rows of /home/mara/data/pairs.jsonl have no field `chosen`: found prompt and [text] in line 17"


def _failed_run(params: Mapping[str, Any]) -> list[AnyEvent]:
    if params.get("action", "ls") != "show":
        return recorded("runs")
    rows = (
        ("tokenizer", "failed: no disk", None, None, None),
        ("tokenizer", "done", 3.0, 500 << 20, "/home/mara/artifacts/tokenizer-c4cf"),
        ("prepare", f"failed: {_WRONG}", None, None, None),
    )
    figures = (("gguf", "/home/mara/a.gguf"), *((f"figure_{place}", str(place)) for place in range(40)))
    return [
        Note(f"{params['id']}: amigo-local run smoke"),
        Table("Stages", _STAGES, rows),
        Table("tokenizer: figures", (Column("figure"), Column("value")), figures),
    ]


def test_a_failure_is_told_apart_from_one_that_the_run_went_on_after() -> None:
    stages, figures = _failed_run({"action": "show", "id": "a"})[1:]
    assert isinstance(stages, Table) and isinstance(figures, Table)
    answer = run_answer([], [stages, figures])
    assert answer.failures == (f"prepare failed: {_WRONG}",)
    assert answer.overcome == ("tokenizer failed: no disk",)
    assert answer.stages is not None
    assert [row[1] for row in answer.stages.rows] == ["✗ failed", "✓ done", "✗ failed"]
    assert answer.stages.rows[1][4] == "tokenizer-c4cf" and answer.figures[0].rows[0] == ("gguf", "a.gguf")
    assert run_answer([], []).failures == ()


@pytest.mark.parametrize("size", [(80, 24), (120, 40)])
def test_the_whole_message_of_a_failure_is_read_and_details_are_scrolled_by_keys(
    tmp_path: Path, size: tuple[int, int]
) -> None:
    async def body() -> None:
        app = AmigoApp(PinnedSession(tmp_path, {"runs": _failed_run}), screen="runs")
        async with headless(app, size) as pilot:
            await until(pilot, lambda: "✗ prepare failed" in screen_text(app))
            details = app.screen.query_one(RunDetails)
            left = details.region.x
            said = " ".join(line[left:].strip(" │▁▂▃▄▅▆▇█") for line in screen_text(app).splitlines())
            assert _WRONG in said
            before = runs_screen(app).pointed
            await pilot.press("tab", "end")
            await until(pilot, lambda: "figure_39" in screen_text(app))
            place = details.scroll_offset.y
            await pilot.press("f5")
            await pilot.pause(0.4)
            assert details.scroll_offset.y == place > 0 and runs_screen(app).pointed == before
            await pilot.press("shift+tab", "down")
            await until(pilot, lambda: runs_screen(app).pointed != before)
            await until(pilot, lambda: details.scroll_offset.y == 0)  # another run is read from its beginning
            await pilot.press("8")
            await until(pilot, lambda: not isinstance(app.screen, RunsScreen))

    asyncio.run(body())


def test_freed_while_it_is_asked_whether_to_leave_the_app_it_waits_for_the_answer(tmp_path: Path) -> None:
    """A pull goes on, which doesn't keep the home to itself; freeing takes its time."""
    freed = asyncio.Event()

    class SlowSession(PinnedSession):
        async def ask(self, verb: str, params: Mapping[str, Any] | None = None) -> Reply:
            if (params or {}).get("yes"):
                await freed.wait()
            return await super().ask(verb, params)

    async def body() -> None:
        app = AmigoApp(SlowSession(tmp_path), screen="runs")
        async with headless(app, (100, 30)) as pilot:
            await until(pilot, lambda: runs_screen(app).state != "")
            await pilot.press("c")
            await until(pilot, lambda: isinstance(app.screen, Cleaning) and "y frees it" in screen_text(app))
            await pilot.press("y")
            await until(pilot, lambda: "freeing" in screen_text(app))
            await pilot.press("ctrl+q")
            await until(pilot, lambda: isinstance(app.screen, Leaving))
            freed.set()
            await pilot.pause(0.3)
            assert isinstance(app.screen, Leaving)
            await pilot.press("escape")
            await until(pilot, lambda: isinstance(app.screen, RunsScreen))

    asyncio.run(body())


def test_a_run_that_moves_on_all_the_time_is_listed_at_most_every_two_seconds(tmp_path: Path) -> None:
    asked: list[str] = []

    def runs(params: Mapping[str, Any]) -> list[AnyEvent]:
        asked.append(params.get("action", "ls"))
        return _failed_run(params)

    async def body() -> None:
        app = AmigoApp(PinnedSession(tmp_path, {"runs": runs}), screen="runs")
        async with headless(app) as pilot:
            await until(pilot, lambda: "✗ prepare failed" in screen_text(app))
            await pilot.press("f5")
            await until(pilot, lambda: asked.count("ls") == 2)  # it was listed just now
            before = asked.count("ls")
            for seq in range(200):
                runs_screen(app).run_updated(RunState(run_id="a"), [Record("a", seq, 0.0, "train", RunPaused())])
            await pilot.pause(0.1)
            assert asked.count("ls") == before
            await until(pilot, lambda: asked.count("ls") == before + 1, seconds=5)  # the last of them isn't lost

    asyncio.run(body())


def test_cleaning_shows_what_goes_with_older_runs_or_without_and_frees_it_once(tmp_path: Path) -> None:
    asked: list[tuple[bool, bool]] = []
    columns = (Column("path"), Column("why"), Column("frees", "bytes"))
    broken = (f"{tmp_path}/artifacts/train-01.partial", "unfinished", 1 << 20)
    older = (f"{tmp_path}/artifacts/quantize-02", "of an older run", 3 << 20)

    def runs(params: Mapping[str, Any]) -> list[AnyEvent]:
        if params.get("action") != "clean":
            return _failed_run(params)
        asked.append((params["all"], bool(params.get("yes"))))
        rows = (broken, older) if params["all"] else (broken,)
        return [Table("Would be freed", columns, rows), Note("freed 4.0 MiB", "good")]

    async def body() -> None:
        app = AmigoApp(PinnedSession(tmp_path, {"runs": runs}), screen="runs")
        async with headless(app, (80, 24)) as pilot:
            await until(pilot, lambda: "✗ prepare failed" in screen_text(app))
            await pilot.press("c")
            await until(pilot, lambda: "1 to free" in screen_text(app) and "1.0 MiB" in screen_text(app))
            assert " artifacts/train-01.partial " in screen_text(app)
            await pilot.press("a")
            await until(pilot, lambda: "2 to free" in screen_text(app) and "4.0 MiB" in screen_text(app))
            await pilot.press("a")
            await until(pilot, lambda: "1 to free" in screen_text(app))
            await pilot.press("a")
            await until(pilot, lambda: "2 to free" in screen_text(app))
            await pilot.press("y", "y", "escape")
            await until(pilot, lambda: isinstance(app.screen, RunsScreen))
            assert asked == [(False, False), (True, False), (False, False), (True, False), (True, True)]

    asyncio.run(body())


def test_what_others_run_is_seen_without_a_key_and_what_is_being_read_stays(tmp_path: Path) -> None:
    workspace = Workspace(tmp_path)

    def wrote(run_id: str, *events: AnyEvent) -> None:
        with Journal(workspace.runs_dir / run_id / JOURNAL_NAME) as journal:
            for event in events:
                journal.append(Record(run_id, journal.next_seq, 1_795_800_000.0, "train", event))
        write_run(workspace, RunRecord(run_id=run_id, verb="train", title=run_id, params={}, settings=OFFLINE))

    async def body() -> None:
        async with driven(tmp_path, screen="runs") as (app, pilot):
            await until(pilot, lambda: "Nothing was run here yet" in screen_text(app))
            failed = StageFailed("out of [memory]", "less", 1, "Traceback (most recent call last)\nMemoryError")
            wrote("first", RunStarted("train", "first"), failed, RunFinished(1, 2.0))
            await until(pilot, lambda: runs_screen(app).state == "failed")
            await until(pilot, lambda: runs_screen(app).check_action("traceback", ()) is True)
            assert "MemoryError" not in screen_text(app)
            await pilot.press("t")
            await until(pilot, lambda: "MemoryError" in screen_text(app))
            wrote("second", RunStarted("train", "second"))
            with hold_run(workspace.runs_dir / "second", "amigo-local train"):
                await until(pilot, lambda: "▶ running" in screen_text(app))
                wrote("second", RunPaused())
                await until(pilot, lambda: "‖ paused" in screen_text(app))
            await until(pilot, lambda: "■ cut" in screen_text(app))
            assert runs_screen(app).pointed == "first" and "MemoryError" in screen_text(app)

    asyncio.run(body())


def test_a_journal_that_grows_asks_nothing_and_one_that_rests_asks_once(tmp_path: Path) -> None:
    folder = tmp_path / "a"
    folder.mkdir()
    journal = folder / JOURNAL_NAME
    signs: dict[str, Sign] = {}
    seen: list[dict[str, tuple[bool, bool]]] = []

    def look(now: float) -> None:
        nonlocal signs
        signs = signs_of(tmp_path, signs, now)
        seen.append(standing(signs, now))

    with hold_run(folder, "amigo-local train"):
        for second in range(20):
            if second < 10 or second == 18:
                journal.write_bytes(b"x" * (second + 1))
            look(second)
    look(20)
    assert seen == [{"a": (True, False)}] * 13 + [{"a": (True, True)}] * 5 + [{"a": (True, False)}] * 2 + [
        {"a": (False, False)}
    ]


def _details(app: AmigoApp) -> str:
    from amigo_local.tui.widgets.facts import Facts

    return "\n".join(line.plain for facts in app.screen.query(Facts) for line in facts.draw(100))
