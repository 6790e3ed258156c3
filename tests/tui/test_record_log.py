"""The last records as sentences."""

from __future__ import annotations

import re
import time

from textual.app import ComposeResult
from textual.pilot import Pilot

from amigo_local.domain.artifact import Artifact
from amigo_local.domain.events import AnyEvent, MetricLogged, Note, Progress, Record, StageFailed, StageSkipped
from amigo_local.tui.widgets.record_log import RecordLog
from tests.support.widget_host import Body, WidgetHost, hosted

AT = 1_795_800_000.0


def record(event: AnyEvent, stage: str = "train", at: float = AT) -> Record:
    return Record("r", 0, at, stage, event)


def logged(body: Body, size: tuple[int, int] = (80, 10), most: int = 2000) -> None:
    hosted(RecordLog(most_entries=most), body=body, size=size)


def test_a_line_has_time_stage_and_sentence() -> None:
    async def body(app: WidgetHost, pilot: Pilot[None]) -> None:
        app.query_one(RecordLog).add([record(Note("12 rows were left out"))])
        await pilot.pause()
        clock = time.strftime("%H:%M:%S", time.localtime(AT))
        assert app.screen_text().splitlines()[0].rstrip() == f"{clock} train      12 rows were left out"
        await pilot.resize_terminal(50, 10)
        await pilot.pause()
        assert app.screen_text().splitlines()[0].rstrip() == f"{clock[:5]} train      12 rows were left out"

    logged(body)


def test_long_sentences_are_wrapped_below_themselves_and_again_when_the_width_changes() -> None:
    async def body(app: WidgetHost, pilot: Pilot[None]) -> None:
        log = app.query_one(RecordLog)
        log.add([record(StageFailed("the quick brown fox jumps over the lazy dog again and again", "run", 1))])
        await pilot.pause()
        assert [text[17:] for text in log.texts] == [
            "failed: the quick brown fox", "jumps over the lazy dog again", "and again", "  hint: run",
        ]  # fmt: skip
        await pilot.resize_terminal(120, 10)
        await pilot.pause()
        assert len(log.texts) == 2
        log.add([record(Note("x" * 500))])
        assert all(len(text) <= 120 for text in log.texts)

    logged(body, (48, 10))


def test_progress_replaces_the_last_and_metrics_and_what_says_nothing_are_left_out() -> None:
    async def body(app: WidgetHost, pilot: Pilot[None]) -> None:
        log = app.query_one(RecordLog)
        log.add(record(Progress("training", done, 9, "steps")) for done in range(5))
        log.add([record(MetricLogged(1, {"loss": 1.0})), record(Note("hm"))])
        await pilot.pause()
        assert [text[20:] for text in log.texts] == ["hm", "training 4 of 9 steps (44 %)"]
        log.show_progress("train", None)
        assert [text[20:] for text in log.texts] == ["hm"]
        log.clear()
        assert log.texts == []

    logged(body)


def test_it_follows_its_end_unless_scrolled_up() -> None:
    async def body(app: WidgetHost, pilot: Pilot[None]) -> None:
        log = app.query_one(RecordLog)
        log.focus()
        log.add(record(Note(f"note {n}")) for n in range(50))
        await pilot.pause()
        assert "note 49" in app.screen_text()
        await pilot.press("up", "up", "up")
        await pilot.pause()
        top = log.scroll_offset.y
        log.add([record(Note("note 50"))])
        await pilot.pause()
        assert log.scroll_offset.y == top and "note 50" not in app.screen_text()
        seen = re.findall(r"note \d+", app.screen_text())
        log.add(record(Note(f"more {n}")) for n in range(30))
        await pilot.pause()
        assert re.findall(r"note \d+", app.screen_text()) == seen, "though the oldest went"
        await pilot.press("end")
        await pilot.pause()
        log.add([record(Note("note 51"))])
        await pilot.pause()
        assert "note 51" in app.screen_text()

    logged(body, most=60)


def test_it_keeps_the_last_entries_only_and_takes_many_at_once() -> None:
    async def body(app: WidgetHost, pilot: Pilot[None]) -> None:
        log = app.query_one(RecordLog)
        log.add(record(Note(f"note {n} and its second line\nhere")) for n in range(5000))
        await pilot.pause()
        assert len(log.texts) == 2 * 300 and log.texts[0].endswith("note 4700 and its second line")
        assert "note 4999" in app.screen_text()

    logged(body, most=300)


def test_markup_and_control_characters_are_text() -> None:
    async def body(app: WidgetHost, pilot: Pilot[None]) -> None:
        app.query_one(RecordLog).add([record(Note("[b]bold[/b] \x1b[31mred"))])
        await pilot.pause()
        assert "[b]bold[/b] ␛[31mred" in app.screen_text()

    logged(body)


class EarlyLog(RecordLog):
    def compose(self) -> ComposeResult:
        self.add([record(Note("early"))])
        yield from ()


def test_what_came_before_it_has_a_size_is_there_once_it_has_one() -> None:
    async def body(app: WidgetHost, pilot: Pilot[None]) -> None:
        assert "early" in app.screen_text()

    hosted(EarlyLog(), body=body)


def test_a_skipped_stage_is_told() -> None:
    async def body(app: WidgetHost, pilot: Pilot[None]) -> None:
        made = Artifact("dataset", "/home/x", "sha256:0", 1, "prepare", "p-1", figures={}, run_id="r", created=AT)
        app.query_one(RecordLog).add([record(StageSkipped("p-1", made), "prepare")])
        await pilot.pause()
        assert "prepare    already done: /home/x" in app.screen_text()

    logged(body)
