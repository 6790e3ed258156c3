"""Plain lines: progress now and then, again when a chain comes to the same stage again."""

from __future__ import annotations

import pytest

from amigo_local.cli.plain import PlainRenderer
from amigo_local.domain.events import AnyEvent, Progress, Record, StageStarted


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
