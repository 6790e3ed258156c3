"""Cleaning: what could be freed on disk, before it is."""

from __future__ import annotations

import asyncio
from typing import ClassVar

from textual import work
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Vertical
from textual.screen import ModalScreen
from textual.widgets import Footer, Static

from amigo_local.domain.artifact import Figure
from amigo_local.domain.units import format_size
from amigo_local.tui.session import Session
from amigo_local.tui.widgets.table_view import TableView


class Cleaning(ModalScreen[str]):
    """Answers with what was freed, in words; empty: nothing was."""

    DEFAULT_CSS = """
    Cleaning {
        align: center middle;
        & > Vertical { width: 96%; height: 84%; border: round $warning; background: $surface; padding: 0 1; }
        #what { height: auto; }
    }
    """
    AUTO_FOCUS = "RowList"
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape", "leave", "Leave all"),
        Binding("y", "free", "Free it"),
        Binding("a", "older(True)", "Older runs too"),
        Binding("a", "older(False)", "Without older runs"),
    ]

    def __init__(self, session: Session) -> None:
        super().__init__()
        self._session = session
        self._all = self._freeing = False
        self._bytes: int | None = None
        """What could be freed; None while that isn't known."""

    def compose(self) -> ComposeResult:
        with Vertical():
            yield Static("looking for what isn't needed…", id="what", markup=False)
            yield TableView("path", empty="", sort="frees", descending=True, texts={"path": self._in_home})
        yield Footer()

    def _in_home(self, path: Figure) -> str:
        return str(path).removeprefix(f"{self._session.home}/")

    def on_mount(self) -> None:
        self._look()

    @work(group="clean", exclusive=True)
    async def _look(self) -> None:
        self._bytes = None
        self.refresh_bindings()
        reply = await self._session.ask("runs", {"action": "clean", "all": self._all})
        table = reply.tables[0] if reply.tables else None
        if reply.error or table is None:
            self._say(f"{reply.error.message}\n{reply.error.hint}" if reply.error else "nothing to clean")
            return
        frees = next(place for place, column in enumerate(table.columns) if column.format == "bytes")
        self._bytes = sum(int(row[frees] or 0) for row in table.rows)
        self.query_one(TableView).show(table)
        self.query_one(TableView).focus_rows()
        older = "also of older runs" if self._all else "unfinished, broken or unclaimed"
        self._say(
            f"{len(table.rows)} to free ({older}), {format_size(self._bytes)}. y frees it; it can't be taken back."
            if table.rows
            else f"Nothing to free ({older})." + ("" if self._all else " a looks at artifacts of older runs too.")
        )
        self.refresh_bindings()

    def _say(self, text: str) -> None:
        self.query_one("#what", Static).update(text)

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        """Once it frees, it isn't left half done by a key."""
        match action, parameters:
            case "free", _:
                return not self._freeing and self._bytes is not None and bool(self.query_one(TableView).shown)
            case "older", (older,):
                return not self._freeing and older != self._all
            case "leave", _:
                return not self._freeing
        return super().check_action(action, parameters)

    def action_leave(self) -> None:
        """What is still looked for finds no screen to be shown on."""
        self.workers.cancel_node(self)
        self.dismiss("")

    def action_older(self, older: bool) -> None:
        self._all = older
        self._look()

    def action_free(self) -> None:
        self._freeing = True
        self.refresh_bindings()
        self._say(f"freeing {format_size(self._bytes or 0)}…")
        self._free()

    @work(group="clean")
    async def _free(self) -> None:
        reply = await self._session.ask("runs", {"action": "clean", "all": self._all, "yes": True})
        self._freeing = False
        if reply.error:
            self._say(f"{reply.error.message}\n{reply.error.hint}")
            self.refresh_bindings()
        else:
            while self.app.screen is not self:  # it is being asked whether to leave the app
                await asyncio.sleep(0.1)
            self.dismiss(reply.notes[-1].text if reply.notes else "freed")
