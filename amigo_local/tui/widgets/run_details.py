"""RunDetails: what one run was asked, what went wrong, its stages and figures; tracebacks on demand."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from textual.app import ComposeResult
from textual.containers import Vertical, VerticalScroll
from textual.content import Content
from textual.widgets import Static

from amigo_local.domain.artifact import Figure
from amigo_local.domain.events import Note, Table
from amigo_local.tui.widgets.facts import Facts
from amigo_local.tui.widgets.ink import MUTED
from amigo_local.tui.widgets.status_signs import GLYPHS

_FAILED = "failed: "
_TRACEBACK = "Traceback "


@dataclass(frozen=True)
class RunAnswer:
    """What `runs show` said."""

    title: str = ""
    failures: tuple[str, ...] = ()
    """Of what it stands at now."""
    overcome: tuple[str, ...] = ()
    """Failures that it went on after."""
    stages: Table | None = None
    figures: tuple[Table, ...] = ()
    tracebacks: tuple[str, ...] = ()


class RunDetails(VerticalScroll):
    """The same run shown again stays as it was scrolled."""

    DEFAULT_CSS = """
    RunDetails {
        padding: 0 1; scrollbar-size-vertical: 1;
        #title { height: auto; text-style: bold; }
        #wrong { height: auto; display: none; margin-top: 1; }
        #tables { height: auto; }
        Facts { padding: 0; }
        #traceback { height: auto; display: none; color: $text-muted; margin-top: 1; }
    }
    """

    def __init__(self) -> None:
        super().__init__()
        self._run_id = ""
        self._answer = RunAnswer()

    def compose(self) -> ComposeResult:
        yield Static(id="title", markup=False)
        yield Static(id="wrong")
        yield Vertical(id="tables")
        yield Static(id="traceback", markup=False)

    @property
    def has_traceback(self) -> bool:
        return bool(self._answer.tracebacks)

    async def show(self, run_id: str, answer: RunAnswer) -> None:
        if (run_id, answer) == (self._run_id, self._answer):
            return
        same, place = run_id == self._run_id, self.scroll_offset.y
        self._run_id, self._answer = run_id, answer
        self.query_one("#title", Static).update(answer.title)
        wrong = self.query_one("#wrong", Static)
        wrong.display = bool(answer.failures or answer.overcome)
        wrong.update(Content("\n").join(_said_wrong(answer)))
        tables = self.query_one("#tables", Vertical)
        async with self.batch():
            await tables.remove_children()
            stages = [Facts(answer.stages, spare=True)] if answer.stages else []
            await tables.mount_all([*stages, *map(Facts, answer.figures)])
        traceback = self.query_one("#traceback", Static)
        traceback.display = same and traceback.display and self.has_traceback
        traceback.update("\n\n".join(answer.tracebacks))
        self.call_after_refresh(self.scroll_to, y=place if same else 0, animate=False)

    def toggle_traceback(self) -> None:
        view = self.query_one("#traceback", Static)
        view.display = not view.display
        if view.display:
            self.focus(scroll_visible=False)
            self.call_after_refresh(view.scroll_visible, top=True, animate=False)


def run_answer(notes: Sequence[Note], tables: Sequence[Table]) -> RunAnswer:
    """The first of the tables has a row a stage: its name, then the outcome, which holds the message of a failure."""
    said = [note.text for note in notes]
    stages, *figures = tables or (None,)
    rows = stages.rows if stages else ()
    failed = [_is_failure(row) for row in rows]
    since = len(rows) - next((place for place, wrong in enumerate(reversed(failed)) if not wrong), len(rows))
    messages = [_message(row) for row in rows]
    return RunAnswer(
        title="\n".join(text for text in said if _TRACEBACK not in text),
        failures=tuple(messages[place] for place in range(since, len(rows))),
        overcome=tuple(messages[place] for place in range(since) if failed[place]),
        stages=Table(stages.title, stages.columns, tuple(map(_brief, rows))) if stages and rows else None,
        figures=tuple(
            Table(table.title, table.columns, tuple((name, *map(_last_part, values)) for name, *values in table.rows))
            for table in figures
            if table
        ),
        tracebacks=tuple(text for text in said if _TRACEBACK in text),
    )


def _is_failure(row: Sequence[Figure]) -> bool:
    return str(row[1]).startswith(_FAILED)


def _message(row: Sequence[Figure]) -> str:
    return f"{row[0]} {row[1]}"


def _brief(row: Sequence[Figure]) -> tuple[Figure, ...]:
    """A failure without its message, paths by their last part: the folder is the home's."""
    stage, outcome, *others = row
    word = str(outcome).partition(":")[0]
    glyph = GLYPHS["failed" if word == "failed" else "cancelled" if word == "cancelled" else "done"]
    return stage, f"{glyph} {word}", *map(_last_part, others)


def _last_part(value: Figure) -> Figure:
    """Of a path, whose whole would fill the panel; `runs show` has it."""
    return value.rsplit("/", 1)[-1] if isinstance(value, str) and value.startswith("/") else value


def _said_wrong(answer: RunAnswer) -> list[Content]:
    earlier = [Content.assemble((f"went on after: {text}", MUTED)) for text in answer.overcome]
    return earlier + [Content.assemble((f"{GLYPHS['failed']} {text}", "$error")) for text in answer.failures]
