"""ModelDetails: everything about one model on three pages: facts, texts, lineage."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import ClassVar

from textual import events
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal, Vertical, VerticalScroll
from textual.content import Content
from textual.message import Message
from textual.widgets import ContentSwitcher, Static

from amigo_local.domain.events import LineageShown, Note, StageFailed, Table
from amigo_local.presentation.formats import format_value
from amigo_local.presentation.visible_text import visible
from amigo_local.tui.widgets.lineage_tree import LineageTree
from amigo_local.tui.widgets.long_text import LongText
from amigo_local.tui.widgets.model_facts import Fact, ModelFacts

PAGES = {"facts": "About", "texts": "Template", "lineage": "Lineage"}
_TEXTS = ("template", "system", "chat template of the file")
"""Properties that are whole texts."""
_LAST = ("reference", "files", "digest")


@dataclass(frozen=True)
class ModelAnswer:
    """What `models show REF` said."""

    tables: Sequence[Table]
    lineage: LineageShown | None = None
    notes: Sequence[Note] = ()
    error: StageFailed | None = None

    @property
    def facts(self) -> list[Fact]:
        """What a person looks for first; long names and digests last."""
        facts = [fact for fact in self._properties if fact[0] not in _TEXTS]
        return sorted(facts, key=lambda fact: fact[0] in _LAST)

    @property
    def texts(self) -> list[Fact]:
        texts = [fact for fact in self._properties if fact[0] in _TEXTS]
        return sorted(texts, key=lambda fact: _TEXTS.index(fact[0]))

    @property
    def tensors(self) -> Table | None:
        return next((table for table in self.tables if len(table.columns) > 2), None)

    @property
    def _properties(self) -> list[Fact]:
        table = next((table for table in self.tables if len(table.columns) == 2), None)
        if table is None:
            return []
        return [(str(name), format_value(value, table.columns[1])) for name, value in table.rows]


class PageName(Static):
    """One of the pages; a click turns to it."""

    @dataclass
    class Chosen(Message):
        page: str

    def __init__(self, page: str) -> None:
        super().__init__(PAGES[page], classes="page", markup=False)
        self.page = page

    def on_click(self, event: events.Click) -> None:
        event.stop()
        self.post_message(self.Chosen(self.page))


class ModelDetails(Vertical):
    DEFAULT_CSS = """
    ModelDetails {
        #pages { height: 1; background: $panel; }
        .page { width: auto; padding: 0 1; color: $text-muted; }
        .page:hover { background: $boost; }
        .page.active { background: $primary 30%; color: $text; text-style: bold; }
        #keys { width: auto; padding: 0 1; color: $text-disabled; }
        #title { width: 1fr; padding: 0 1; text-align: right; text-wrap: nowrap; text-overflow: ellipsis; }
        ContentSwitcher { height: 1fr; }
        #facts { height: 1fr; scrollbar-size-vertical: 1; }
        #texts { padding: 0 1; }
        #lineage { height: 1fr; }
        &:focus-within #pages { background: $primary 15%; }
    }
    """
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape", "leave", "Back to the list", show=False),
    ]

    class Left(Message):
        """Back to the list."""

    def compose(self) -> ComposeResult:
        with Horizontal(id="pages"):
            for page in PAGES:
                yield PageName(page)
            yield Static("[ ]", id="keys", markup=False)
            yield Static(id="title", markup=False)
        with ContentSwitcher(initial="facts"):
            with VerticalScroll(id="facts"):
                yield ModelFacts()
            yield LongText(id="texts")
            yield LineageTree(id="lineage")

    def on_mount(self) -> None:
        self.turn_to("facts")

    # -- What is shown

    def show(self, title: str, answer: ModelAnswer, listed: Iterable[str]) -> None:
        self._title(title)
        notes = [note.text + (f"\n{note.fix}" if note.fix else "") for note in answer.notes if note.level != "info"]
        self.query_one(ModelFacts).show(answer.facts, answer.tensors, notes, answer.error)
        self.query_one(LongText).show(_written(answer.texts))
        self.query_one(LineageTree).show(answer.lineage, listed)
        self.query_one("#facts").scroll_home(animate=False)

    def show_first(self, title: str, facts: Sequence[Fact]) -> None:
        """What the list says of it, until the rest is there."""
        self._title(title)
        self.query_one(ModelFacts).show(facts)
        self.query_one(LongText).show("…")
        self.query_one(LineageTree).show(None, ())

    def _title(self, title: str) -> None:
        self.query_one("#title", Static).update(Content(visible(title)))

    # -- Pages

    @property
    def page(self) -> str:
        return str(self.query_one(ContentSwitcher).current)

    def turn_to(self, page: str) -> None:
        had_focus = self.has_focus_within
        self.query_one(ContentSwitcher).current = page
        for name in self.query(PageName):
            name.set_class(name.page == page, "active")
        if had_focus:
            self.focus_page()

    def turn(self, by: int) -> None:
        pages = list(PAGES)
        self.turn_to(pages[(pages.index(self.page) + by) % len(pages)])

    def focus_page(self) -> None:
        page = self.query_one(f"#{self.page}")
        (page.branches if isinstance(page, LineageTree) else page).focus()

    def on_page_name_chosen(self, event: PageName.Chosen) -> None:
        event.stop()
        self.turn_to(event.page)

    def action_leave(self) -> None:
        self.post_message(self.Left())


def _written(texts: Sequence[Fact]) -> str:
    return "\n\n".join(f"── {name} ──\n{text}" for name, text in texts)
