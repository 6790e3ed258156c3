"""Plain lines: progress now and then, again when a chain comes to the same stage again."""

from __future__ import annotations

import pytest

from amigo_local.cli.live import LiveRenderer
from amigo_local.cli.plain import PlainRenderer
from amigo_local.domain.events import AnyEvent, GenerationFinished, Progress, Record, StageStarted, TokenGenerated


def test_the_second_prepare_of_a_chain_tells_its_progress_too(capsys: pytest.CaptureFixture[str]) -> None:
    show = PlainRenderer()
    seconds = iter(range(1000, 1100))

    def tell(event: AnyEvent) -> None:
        show(Record("run", 0, float(next(seconds)), "prepare", event))

    for name in ("one", "two"):
        tell(StageStarted("mark", f"{name}: Build the training set."))
        for done in (0, 1, 2, 10, 10):
            tell(Progress("reading", done, 10, "rows"))
    lines = capsys.readouterr().err.splitlines()
    told = ["prepare: reading 0 of 10 rows (0 %)", "prepare: reading 10 of 10 rows (100 %)"]
    assert lines == ["prepare: one: Build the training set.", *told, "prepare: two: Build the training set.", *told]


@pytest.mark.parametrize("renderer", [PlainRenderer, LiveRenderer])
def test_what_a_model_writes_cannot_steer_the_terminal(
    renderer: type[PlainRenderer] | type[LiveRenderer], capsys: pytest.CaptureFixture[str]
) -> None:
    show = renderer()
    for seq, text in enumerate(("red \x1b", "[31m", "\x9b2J", "\r", "\u202e\ud800", "end")):
        show(Record("run", seq, 0.0, "chat", TokenGenerated(0, 0, text)))
    show.close()
    assert capsys.readouterr().out == "red ␛[31m\\x9b2J\\u202e\ufffdend\n"


@pytest.mark.parametrize("renderer", [PlainRenderer, LiveRenderer])
def test_two_answers_at_the_same_time_come_one_below_the_other(
    renderer: type[PlainRenderer] | type[LiveRenderer], capsys: pytest.CaptureFixture[str]
) -> None:
    show = renderer()
    said = [(1, "new "), (0, "old "), (1, "model"), (0, "model")]
    events: list[AnyEvent] = [TokenGenerated(side, 0, text) for side, text in said]
    events += [GenerationFinished(side, 0, f"m{side}", 1, 1, 0.0, 0.0, 0.0, "stop") for side in (1, 0)]
    for seq, event in enumerate(events):
        show(Record("run", seq, 0.0, "chat", event))
    show.close()
    shown = capsys.readouterr()
    assert shown.out == "old model\nnew model\n"
    assert shown.err.index("m0: 1 tokens") < shown.err.index("m1: 1 tokens")
