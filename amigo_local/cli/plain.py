"""Plain lines: what a pipe, a log file or CI gets."""

from __future__ import annotations

import sys

from amigo_local.domain.events import (
    AnswerShown,
    GenerationFinished,
    LineageShown,
    MachineMeasured,
    PlanMade,
    Progress,
    Record,
    SampleShown,
    StageStarted,
    Table,
    TokenGenerated,
)
from amigo_local.presentation.answer import answer_lines
from amigo_local.presentation.formats import cells, is_numeric
from amigo_local.presentation.in_turn import InTurn
from amigo_local.presentation.lineage import lineage_lines
from amigo_local.presentation.machine_table import machine_table
from amigo_local.presentation.memory_bar import memory_bars
from amigo_local.presentation.sample import sample_lines
from amigo_local.presentation.sentences import is_self_evident, sentence
from amigo_local.presentation.visible_text import visible

_EVERY_SECONDS = 5.0


class PlainRenderer:
    """Answers and tables go to stdout, all else to stderr: `amigo-local chat … > answer.txt` works."""

    def __init__(self) -> None:
        self._last_progress: dict[str, float] = {}
        self._mid_line = False
        self._side: tuple[str, int, int] | None = None
        self._in_turn = InTurn()

    def __call__(self, record: Record) -> None:
        for each in self._in_turn.feed(record) if record.stage == "chat" else (record,):
            self._show(each)

    def _show(self, record: Record) -> None:
        event = record.event
        if isinstance(event, TokenGenerated):
            if record.stage == "chat":
                self._token(record.stage, event)
            return
        self._end_line()
        if isinstance(event, StageStarted):
            self._last_progress.clear()  # a chain comes to the same stage again
        if isinstance(event, Table):
            print_table(event)
        elif isinstance(event, MachineMeasured):
            print_table(machine_table(event))
        elif isinstance(event, LineageShown):
            print("", *map(visible, lineage_lines(event)), sep="\n", flush=True)
        elif isinstance(event, AnswerShown):
            print("", *map(visible, answer_lines(event)), sep="\n", flush=True)
        elif isinstance(event, SampleShown):
            print("", *sample_lines(event), sep="\n", flush=True)
        elif isinstance(event, PlanMade):
            if event.plan.memory:
                print("", *memory_bars(event.plan.memory), sep="\n", flush=True)
        elif isinstance(event, Progress):
            key = f"{record.stage} {event.label}"
            done = event.total is not None and event.done >= event.total
            last = self._last_progress.get(key, 0.0)
            if record.time - last >= _EVERY_SECONDS or (done and last != float("inf")):
                self._last_progress[key] = float("inf") if done else record.time
                print(f"{record.stage}: {sentence(event)}", file=sys.stderr, flush=True)
        elif isinstance(event, GenerationFinished) and record.stage != "chat":
            return
        elif is_self_evident(record):
            return  # the answer speaks for itself
        elif text := sentence(event):
            print(f"{record.stage}: {text}", file=sys.stderr, flush=True)

    def _token(self, stage: str, event: TokenGenerated) -> None:
        side = (stage, event.side, event.prompt_index)
        if self._side is not None and self._side != side:
            self._end_line()
        self._side = side
        if text := visible(event.text):
            sys.stdout.write(text)
            sys.stdout.flush()
            self._mid_line = not text.endswith("\n")

    def _end_line(self) -> None:
        if self._mid_line:
            sys.stdout.write("\n")
            sys.stdout.flush()
            self._mid_line = False

    def close(self) -> None:
        """Ends a line that an answer left open."""
        self._end_line()


def print_table(table: Table) -> None:
    """Aligned columns, two spaces apart, no frames."""
    rows = [[column.name for column in table.columns], *cells(table)]
    widths = [max(len(row[i]) for row in rows) for i in range(len(table.columns))]
    print(f"\n{table.title}" if table.title else "")
    for row in rows:
        parts = [
            text.rjust(width) if is_numeric(column) else text.ljust(width)
            for text, width, column in zip(row, widths, table.columns, strict=True)
        ]
        print("  " + "  ".join(parts).rstrip())
    sys.stdout.flush()
