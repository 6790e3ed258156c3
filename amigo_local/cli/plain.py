"""Plain lines: what a pipe, a log file or CI gets."""

from __future__ import annotations

import sys

from amigo_local.domain.events import (
    GenerationFinished,
    PlanMade,
    Progress,
    Record,
    SampleShown,
    StageStarted,
    Table,
    TokenGenerated,
)
from amigo_local.presentation.formats import cells, is_numeric
from amigo_local.presentation.memory_bar import memory_bars
from amigo_local.presentation.sample import sample_lines
from amigo_local.presentation.sentences import is_self_evident, sentence

_EVERY_SECONDS = 5.0


class PlainRenderer:
    """Answers and tables go to stdout, all else to stderr: `amigo-local chat … > answer.txt` works."""

    def __init__(self) -> None:
        self._last_progress: dict[str, float] = {}
        self._mid_line = False
        self._side: tuple[str, int, int] | None = None

    def __call__(self, record: Record) -> None:
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
        sys.stdout.write(event.text)
        sys.stdout.flush()
        self._mid_line = not event.text.endswith("\n")

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
