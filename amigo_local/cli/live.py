"""The terminal renderer: live progress with Rich, answers as they come, tables in colour."""

from __future__ import annotations

import re
from collections.abc import Iterator

from rich.box import SIMPLE_HEAD
from rich.console import Console, ConsoleOptions
from rich.markup import escape
from rich.measure import Measurement
from rich.progress import BarColumn, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bar
from rich.table import Table as RichTable
from rich.text import Text

from amigo_local.domain.events import (
    AnswerShown,
    GenerationFinished,
    LineageShown,
    MachineMeasured,
    MetricLogged,
    Note,
    PlanMade,
    Progress,
    Record,
    SampleShown,
    StageCancelled,
    StageFailed,
    StageFinished,
    StageSkipped,
    StageStarted,
    Table,
    TokenGenerated,
)
from amigo_local.presentation.answer import answer_lines
from amigo_local.presentation.formats import cells, is_numeric
from amigo_local.presentation.in_turn import InTurn
from amigo_local.presentation.lineage import lineage_lines
from amigo_local.presentation.machine_table import machine_table
from amigo_local.presentation.memory_bar import WIDTH, memory_bars
from amigo_local.presentation.sample import sample_text
from amigo_local.presentation.sentences import is_self_evident, sentence
from amigo_local.presentation.visible_text import visible

_PART_STYLES = [f"black on {name}" for name in ("cyan", "green", "yellow", "blue", "magenta", "bright_yellow", "white")]
_STYLES = {"good": "green", "warning": "yellow", "problem": "red", "info": ""}


class LiveRenderer:
    """One live line per running stage; everything finished scrolls up and stays."""

    def __init__(self) -> None:
        self._out = Console(highlight=False, soft_wrap=True)
        self._err = Console(stderr=True, highlight=False)
        self._bar: Bar | None = None
        self._tasks: dict[str, TaskID] = {}
        self._metrics = ""
        self._side: tuple[int, int] | None = None
        self._mid_line = False
        self._in_turn = InTurn()

    def __call__(self, record: Record) -> None:
        for each in self._in_turn.feed(record) if record.stage == "chat" else (record,):
            self._show(each)

    def _show(self, record: Record) -> None:
        event = record.event
        if isinstance(event, TokenGenerated):
            if record.stage == "chat":
                self._token(event)
            return
        if isinstance(event, Progress):
            self._progress(record.stage, event)
        elif isinstance(event, MetricLogged):
            self._metrics = sentence(event)
            for task in self._tasks.values():
                if self._bar:
                    self._bar.update(task, metrics=self._metrics)
        elif isinstance(event, SampleShown):
            self._stop_bar()
            self._out.print(sample_text(event), end="")
        elif isinstance(event, Table):
            self._stop_bar()
            self._table(event)
        elif isinstance(event, MachineMeasured):
            self._table(machine_table(event))
        elif isinstance(event, LineageShown | AnswerShown):
            self._stop_bar()
            lines = lineage_lines(event) if isinstance(event, LineageShown) else answer_lines(event)
            self._out.print()
            for number, line in enumerate(lines):
                self._out.print(Text(visible(line), style="bold" if number == 0 else ""))
        elif isinstance(event, PlanMade):
            self._bars(event)
        elif isinstance(event, GenerationFinished):
            if record.stage == "chat":
                self._say(f"[dim]{escape(sentence(event))}[/]")
        else:
            self._line(record)

    def _line(self, record: Record) -> None:
        event, text = record.event, sentence(record.event)
        if not text or is_self_evident(record):
            return  # in a chat the answer speaks for itself
        name = f"[bold cyan]{record.stage:<9}[/]"
        match event:
            case StageStarted():
                self._say(f"{name} {escape(text)}")
            case StageFinished():
                self._stop_bar()
                self._say(f"{name} [green]✓[/] {escape(text)}")
            case StageSkipped():
                self._say(f"{name} [green]✓[/] [dim]{escape(text)}[/]")
            case StageFailed():
                self._stop_bar()
                self._say(f"{name} [red]✗ {escape(event.message)}[/]")
                if event.hint:
                    self._say(f"          [yellow]hint:[/] {escape(event.hint)}")
            case StageCancelled():
                self._stop_bar()
                self._say(f"{name} [yellow]■ {escape(text)}[/]")
            case Note():
                style = _STYLES[event.level]
                self._say(f"{name} {f'[{style}]' if style else ''}{escape(event.text)}{'[/]' if style else ''}")
                if event.fix:
                    self._say(f"          [yellow]fix:[/] {escape(event.fix)}")
            case _:
                self._say(f"{name} [dim]{escape(text)}[/]")

    def _say(self, markup: str) -> None:
        self._end_line()
        (self._bar.console if self._bar else self._err).print(markup, soft_wrap=True)

    def _progress(self, stage: str, event: Progress) -> None:
        self._end_line()
        if self._bar is None:
            columns = (
                SpinnerColumn(),
                TextColumn("[bold cyan]{task.fields[stage]:<9}[/]"),
                BarColumn(bar_width=24),
                TextColumn("{task.description} [dim]{task.fields[metrics]}[/]"),
                TimeElapsedColumn(),
            )
            self._bar = Bar(*columns, console=self._err, transient=True)
            self._bar.start()
        key = f"{stage} {event.label}"
        if key not in self._tasks:
            for old in self._tasks.values():
                self._bar.remove_task(old)
            self._tasks = {key: self._bar.add_task("", total=event.total, stage=stage, metrics=self._metrics)}
        self._bar.update(self._tasks[key], completed=event.done, total=event.total, description=escape(sentence(event)))

    def _stop_bar(self) -> None:
        if self._bar:
            self._bar.stop()
        self._bar, self._tasks, self._metrics = None, {}, ""

    def _table(self, table: Table) -> None:
        self._end_line()
        rows = [[column.name for column in table.columns], *cells(table)]
        tight = sum(3 + max(map(len, column)) for column in zip(*rows, strict=True)) > self._out.width
        rich = RichTable(
            title=table.title or None,
            title_justify="left",
            title_style="bold",
            header_style="cyan",
            box=SIMPLE_HEAD,
            padding=(0, 1, 0, 0 if tight else 1),
        )
        for column in table.columns:
            number = is_numeric(column)
            # A number keeps its line, and its heading then is no wider than it.
            name = column.name.replace(" ", "\n", 1) if number and tight else column.name
            rich.add_column(name, justify="right" if number else "left", overflow="fold", no_wrap=number)
        for row in rows[1:]:
            rich.add_row(*map(_Cell, row))
        self._out.print(rich, soft_wrap=False)

    def _bars(self, event: PlanMade) -> None:
        """Each letter of a stacked bar in a colour of its own."""
        width = min(WIDTH, self._out.width - 7)
        for line in memory_bars(event.plan.memory, width) if event.plan.memory else ():
            text = Text(line)
            if line.lstrip().startswith("["):
                for place, letter in enumerate(line):
                    style = _PART_STYLES[ord(letter) % len(_PART_STYLES)] if letter.isalpha() else "dim"
                    text.stylize("red reverse" if letter == "!" else style, place, place + 1)
            elif line[0] == " ":
                text.stylize(_PART_STYLES[ord(line.strip()[0]) % len(_PART_STYLES)], 5, 6)
            else:
                text.stylize("bold")
            self._out.print(text)

    def _token(self, event: TokenGenerated) -> None:
        side = (event.side, event.prompt_index)
        if side != self._side:
            self._end_line()
            self._side = side
        self._stop_bar()
        if text := visible(event.text):
            self._out.file.write(text)
            self._out.file.flush()
            self._mid_line = not text.endswith("\n")

    def _end_line(self) -> None:
        if self._mid_line:
            self._out.file.write("\n")
            self._out.file.flush()
            self._mid_line = False

    def close(self) -> None:
        """Ends the live display and restores the cursor."""
        self._stop_bar()
        self._end_line()


class _Cell:
    """Text that may go on in a new line behind `_`, `/` and the dots of a setting's name, as well as at a space."""

    def __init__(self, text: str) -> None:
        self._text, self._pieces = text, re.split(r"(?<=[\s_/])(?=\S)|(?<=\.)(?=[^\W\d])", text)

    def __rich_measure__(self, console: Console, options: ConsoleOptions) -> Measurement:
        return Measurement(max(map(len, self._pieces)), len(self._text)).with_maximum(options.max_width)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[Text]:
        line = ""
        for piece in self._pieces:
            if line and len((line + piece).rstrip()) > options.max_width:
                yield Text(line.rstrip())
                line = ""
            line += piece
        yield Text(line)
