"""Tables and bars as the live renderer sets them in a terminal of a given width."""

from __future__ import annotations

import pytest

from amigo_local.cli.live import LiveRenderer
from amigo_local.domain.events import Column, PlanMade, Record, Table
from amigo_local.domain.memory_plan import Batching, MemoryPlan, Part
from amigo_local.domain.plan import Plan

LEVERS = Table(
    "Levers",
    (Column("lever: train.…"), Column("chosen"), Column("saves VRAM", "bytes"), Column("saves a step", "seconds")),
    (
        ("memory.resident_layers", "27 of 48", -2_362_232_012, None),
        ("optimizer", "paged_adamw_8bit", 1_073_741_824, -0.6),
        ("llama-3.1-8b", "all on the card", 0, 3.0),
    ),
)


def shown(
    event: Table | PlanMade, width: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> str:
    monkeypatch.setenv("COLUMNS", str(width))
    LiveRenderer()(Record(time=0.0, run_id="r", seq=0, stage="plan", event=event))
    return capsys.readouterr().out


def test_a_table_that_has_room_keeps_every_cell_on_its_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = shown(LEVERS, 100, monkeypatch, capsys).splitlines()
    assert [line.split() for line in lines if "resident" in line] == [
        ["memory.resident_layers", "27", "of", "48", "-2.2", "GiB", "—"]
    ]


def test_a_narrow_table_breaks_names_where_their_words_end_and_numbers_never(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = [line.strip() for line in shown(LEVERS, 52, monkeypatch, capsys).splitlines() if line.strip()]
    assert lines == [
        "Levers",
        "saves   saves",
        "lever: train.…  chosen               VRAM  a step",
        "─" * 50,
        "memory.         27 of 48         -2.2 GiB       —",
        "resident_",
        "layers",
        "optimizer       paged_adamw_      1.0 GiB  -0.6 s",
        "8bit",
        "llama-3.1-8b    all on the card       0 B   3.0 s",
    ]


@pytest.mark.parametrize(("width", "bar"), [(100, 60), (50, 43)])
def test_bars_are_no_wider_than_the_terminal(
    width: int, bar: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    memory = MemoryPlan(
        device="cpu",
        batching=Batching(micro_batch=1, accumulation=8),
        max_length_tokens=256,
        optimizer="adamw_torch",
        recompute=False,
        ram=(Part("process", 1 << 30),),
        ram_budget_bytes=2 << 30,
    )
    event = PlanMade(Plan(recipe="r", model="m", stages=(), memory=memory))
    drawn = shown(event, width, monkeypatch, capsys).splitlines()[1]
    assert len(drawn) == bar + 7 <= width
    assert drawn.count("a") == round(bar / 2)
