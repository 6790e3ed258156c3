"""The Train screen: a real training of the tiny model, begun on a command line, is steered from the screen."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
from textual.pilot import Pilot

from amigo_local.domain.events import (
    AnyEvent,
    CheckpointSaved,
    Column,
    MetricLogged,
    Note,
    Record,
    RunStarted,
    StageFinished,
    StageStarted,
    Table,
    encode_record,
)
from amigo_local.domain.run_state import RunState, StageState
from amigo_local.tui.app import AmigoApp
from amigo_local.tui.screens.confirm import Confirm
from amigo_local.tui.screens.pick_row import PickRow
from amigo_local.tui.screens.train import TrainScreen
from amigo_local.tui.widgets.curves import Curves
from amigo_local.tui.widgets.record_log import RecordLog
from tests.support.command_line import amigo
from tests.support.pinned_session import NOW, RUN, Answer, PinnedSession
from tests.support.tiny_run import write_tiny_run
from tests.support.tui_driving import driven, headless, screen_text, until

LONG = (
    "train.max_steps=100000",
    "train.epochs=100000",
    "train.checkpoint_every_steps=12",
    "train.evaluate_every_steps=6",
)


def stage(app: AmigoApp) -> StageState:
    assert isinstance(app.screen, TrainScreen)
    found = app.screen.stage
    assert found is not None
    return found


def losses(app: AmigoApp) -> int:
    shown = app.screen.stage if isinstance(app.screen, TrainScreen) else None
    return len(shown.metrics["loss"]) if shown and "loss" in shown.metrics else 0


@pytest.mark.slow
def test_a_training_begun_on_a_command_line_is_watched_paused_stopped_and_resumed(tmp_path: Path) -> None:
    home, recipe = tmp_path / "home", write_tiny_run(tmp_path)
    settings = [word for text in LONG for word in ("--set", text)]
    begun = amigo(home, "train", str(recipe), *settings, "--detach")
    run_id = begun.stdout.strip()
    assert begun.returncode == 0, begun.stderr

    async def first_window() -> None:
        async with driven(home, screen="train") as (app, pilot):
            await until(pilot, lambda: losses(app) > 3)
            assert app.session.run and app.session.run.run_id == run_id
            await until(pilot, lambda: "▶ running  train" in screen_text(app))
            for text in ("of 100,000 steps", "tok/s", "RAM MiB", "to go", "◆ evaluation"):
                await until(pilot, lambda text=text: text in screen_text(app))
            await pilot.press("space")
            await until(pilot, lambda: bool(app.session.run and app.session.run.paused))
            await until(pilot, lambda: "‖ paused" in screen_text(app) and "space Continue" in screen_text(app))

    async def second_window() -> None:
        async with driven(home, size=(80, 24), screen="train") as (app, pilot):
            await until(pilot, lambda: "‖ paused" in screen_text(app))
            before = losses(app)
            await pilot.press("space")
            await until(pilot, lambda: "▶ running" in screen_text(app) and losses(app) > before)
            await pilot.press("s")
            await until(pilot, lambda: not app.session.live)
            await until(pilot, lambda: "■ cancelled" in screen_text(app) and "r Resume" in screen_text(app))
            stopped = stage(app).metrics["loss"].steps
            assert stopped[-1] == stage(app).checkpoints[-1].step and stopped[0] == 1
            await pilot.press("r")
            await until(pilot, lambda: app.session.live and losses(app) > len(stopped) + 2)
            assert stage(app).metrics["loss"].steps[: len(stopped)] == stopped, "one curve"
            assert app.session.run and app.session.run.run_id == run_id
            await pilot.press("x")
            await until(pilot, lambda: isinstance(app.screen, Confirm))
            await pilot.press("escape")
            await pilot.press("x")
            await until(pilot, lambda: isinstance(app.screen, Confirm))
            await pilot.press("y")
            await until(pilot, lambda: not app.session.live and "■ cancelled" in screen_text(app))
            assert app.session.run.exit_code == 130
            assert app.screen.query_one("#loss", Curves)

    try:
        asyncio.run(first_window())
        asyncio.run(second_window())
    finally:  # should it still run
        amigo(home, "runs", "cancel", run_id)


# -- On pinned records


class Following(PinnedSession):
    """Follows a run of these records."""

    def __init__(self, home: Path, records: list[Record], live: bool = True, **answers: Answer) -> None:
        super().__init__(home, answers)
        self._records, self._goes_on = records, live

    async def follow_newest(self) -> None:
        self.run, self.live = RunState(run_id=RUN), self._goes_on
        self.hear(self._records)

    def hear(self, records: list[Record]) -> None:
        assert self.run
        for record in records:
            self.run.apply(record)
        self.on_update(self.run, records)


def chain(*recipes: str) -> list[Record]:
    """The trainings of a chain, the last one going on."""
    events: list[AnyEvent] = [RunStarted(verb="run", title="run all")]
    for place, recipe in enumerate(recipes):
        events.append(StageStarted(f"train-{place}", "Refine", of=recipe))
        for step in range(1, 41):
            events.append(MetricLogged(step, {"loss": 1.0 + place + 1 / step, "learning_rate": 1e-4 * (place + 1)}))
        events.append(MetricLogged(40, {"eval_loss": 1.5 + place}))
        if recipe is not recipes[-1]:
            events.append(StageFinished(None, 100.0, 1 << 30))
    return [Record(RUN, seq, NOW + seq, "train", event) for seq, event in enumerate(events)]


def shown(session: Following, body: Callable[[AmigoApp, Pilot[None]], Awaitable[None]], size: tuple[int, int]) -> None:
    async def run() -> None:
        app = AmigoApp(session, screen="train")
        async with headless(app, size) as pilot:
            await until(pilot, lambda: session.run is not None)
            await pilot.pause()
            await body(app, pilot)

    asyncio.run(run())


def test_a_chain_has_one_curve_a_recipe_and_the_figures_of_the_chosen_one(tmp_path: Path) -> None:
    async def body(app: AmigoApp, pilot: Pilot[None]) -> None:
        text = screen_text(app)
        assert "3 debugging 3.0" in text and "1 code 1.0" in text and "2 context 2.0" in text
        assert "running  debugging (3 of 3)" in text and "loss        4.000 → 3.025" in text and "lr  3.0e-04" in text
        assert stage(app).of == "debugging" and text.count("◆") == 2, "evaluations of the chosen one, and the legend"
        await pilot.press("n")
        await pilot.pause()
        assert "done  code (1 of 3)" in screen_text(app) and "lr  1.0e-04" in screen_text(app)

    shown(Following(tmp_path, chain("code", "context", "debugging")), body, (120, 40))


def test_an_older_run_is_looked_at_without_leaving_the_one_that_goes_on(tmp_path: Path) -> None:
    folder = tmp_path / "runs" / "20260101-120000-train"
    folder.mkdir(parents=True)
    old = [Record(folder.name, r.seq, r.time, r.stage, r.event) for r in chain("older")]
    (folder / "journal.jsonl").write_bytes(b"".join(encode_record(record) + b"\n" for record in old))
    runs = Table("Runs", (Column("run"), Column("started")), ((RUN, "2026-11-27"), (folder.name, "2026-01-01")))

    async def body(app: AmigoApp, pilot: Pilot[None]) -> None:
        assert "space Pause" in screen_text(app)
        await pilot.press("g")
        await until(pilot, lambda: isinstance(app.screen, PickRow))
        await pilot.pause()
        await pilot.press("down", "enter")
        await until(pilot, lambda: "An older run" in screen_text(app))
        text = screen_text(app)
        assert "■ cancelled  older" in text and "r Resume" in text and "space Pause" not in text
        assert isinstance(app.session, Following)
        app.session.hear([Record(RUN, 999, NOW, "train", Note("meanwhile"))])
        await pilot.pause()
        assert "meanwhile" not in screen_text(app)
        await pilot.press("escape")
        await pilot.pause()
        text = screen_text(app)
        assert "▶ running  debugging" in text and "An older run" not in text and "meanwhile" in text

    shown(Following(tmp_path, chain("debugging"), runs=lambda params: [runs]), body, (120, 40))


def test_what_came_while_another_screen_was_shown_is_in_the_log_once(tmp_path: Path) -> None:
    async def body(app: AmigoApp, pilot: Pilot[None]) -> None:
        await pilot.press("8")
        await pilot.pause()
        assert isinstance(app.session, Following)
        app.session.hear([Record(RUN, 500, NOW, "train", CheckpointSaved(40, "/c"))])
        app.session.hear([Record(RUN, 501, NOW, "prepare", Note("of another stage"))])
        await pilot.press("4")
        await pilot.pause()
        app.session.hear([Record(RUN, 502, NOW, "train", Note("the next"))])
        await pilot.pause()
        (log,) = app.screen.query(RecordLog)
        assert [text[6:] for text in log.texts if text[6:]] == ["Refine", "checkpoint at step 40", "the next"]

    shown(Following(tmp_path, chain("code")), body, (120, 40))


def test_before_a_training_it_says_what_comes_first_or_how_to_begin(tmp_path: Path) -> None:
    before: list[AnyEvent] = [RunStarted(verb="run", title="run x"), StageStarted("p", "Build the training set")]
    records = [Record(RUN, seq, NOW, "prepare", event) for seq, event in enumerate(before)]

    async def preparing(app: AmigoApp, pilot: Pilot[None]) -> None:
        assert "prepare comes before training: Build the training set" in screen_text(app)

    async def nothing(app: AmigoApp, pilot: Pilot[None]) -> None:
        text = screen_text(app)
        assert "Nothing was trained yet" in text and "Pause" not in text and "Resume" not in text

    shown(Following(tmp_path, records), preparing, (80, 24))
    shown(Following(tmp_path, [], live=False), nothing, (80, 24))


def test_a_refusal_is_told_with_its_hint(tmp_path: Path) -> None:
    """The run has ended since the key was shown."""

    async def body(app: AmigoApp, pilot: Pilot[None]) -> None:
        app.session.is_live = lambda run_id: False  # type: ignore[method-assign]
        await pilot.press("space")
        await pilot.pause()
        assert "there is no run going on" in screen_text(app)

    shown(Following(tmp_path, chain("code")), body, (120, 40))


def test_it_stays_whole_on_small_terminals(tmp_path: Path) -> None:
    async def body(app: AmigoApp, pilot: Pilot[None]) -> None:
        for size in ((40, 10), (20, 5), (80, 17), (99, 30), (200, 60)):
            await pilot.resize_terminal(*size)
            await pilot.pause()
            assert "running" in screen_text(app) and "loss" in screen_text(app)

    shown(Following(tmp_path, chain("code", "context")), body, (80, 24))
