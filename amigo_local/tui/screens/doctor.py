"""DoctorScreen: what this machine can do, each problem with its fix."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from textual import work
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import VerticalScroll
from textual.content import Content
from textual.widgets import Static

from amigo_local.domain.events import Note, Table
from amigo_local.tui.screens.base import AmigoScreen
from amigo_local.tui.widgets.drawn import Drawn
from amigo_local.tui.widgets.facts import Facts
from amigo_local.tui.widgets.ink import MUTED, folded

_SIGNS = {"good": ("✓", "$success"), "warning": ("!", "$warning"), "problem": ("✗", "$error"), "info": ("·", MUTED)}
_ORDER = ("problem", "warning", "info", "good")


class Finding(Drawn):
    """What was found, and its fix where there is one; those with a fix can be pointed at."""

    DEFAULT_CSS = """
    Finding { height: auto; padding: 0 1; }
    Finding:focus { background: $primary 20%; }
    """

    def __init__(self, note: Note) -> None:
        super().__init__()
        self.note = note
        self.can_focus = bool(note.fix)

    def draw(self, width: int) -> list[Content]:
        sign, color = _SIGNS[self.note.level]
        first, *more = folded(self.note.text, max(10, width - 2))
        lines = [Content.assemble((sign, color), " ", first), *(Content(f"  {line}") for line in more)]
        fixes = folded(self.note.fix, max(10, width - 7)) if self.note.fix else []
        lines += [
            Content.assemble(("  fix: " if place == 0 else "       ", MUTED), (line, "$primary"))
            for place, line in enumerate(fixes)
        ]
        return lines


class Findings(VerticalScroll, can_focus=False, inherit_bindings=False):
    """Its screen has the keys: they are to scroll also when nothing in it can be pointed at."""


class DoctorScreen(AmigoScreen):
    NAME = "doctor"
    DEFAULT_CSS = """
    DoctorScreen {
        #verdict { height: auto; padding: 0 1; text-style: bold; }
        Findings { height: 1fr; scrollbar-size-vertical: 1; }
    }
    """
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("f5", "look", "Look again"),
        Binding("c,enter", "copy", "Copy the fix"),
        Binding("down,j", "move(1)", "Next fix", show=False),
        Binding("up,k", "move(-1)", "Fix before", show=False),
        Binding("pagedown", "page(1)", "Page down", show=False),
        Binding("pageup", "page(-1)", "Page up", show=False),
        Binding("home", "top", "To the top", show=False),
        Binding("end", "end", "To the end", show=False),
    ]

    def __init__(self) -> None:
        super().__init__()
        self._looked = self._looking = False

    def body(self) -> ComposeResult:
        yield Static(id="verdict", markup=False)
        yield Findings()

    @property
    def found(self) -> Findings:
        return self.query_one(Findings)

    @property
    def chosen(self) -> Finding | None:
        return self.focused if isinstance(self.focused, Finding) else None

    # -- What is shown

    def shown(self) -> None:
        if not self._looked:
            self.action_look()

    def action_look(self) -> None:
        """What was found before stays meanwhile."""
        if not self._looking:
            self._looking = True
            self._say("looking…")
            self._look()

    @work(group="doctor")
    async def _look(self) -> None:
        try:
            reply = await self.session.ask("doctor")
        finally:
            self._looking = False
        if reply.error:
            self.amigo.show_failure(reply.error)
        if reply.error or not reply.notes:
            self._say("the look wasn't finished; f5 tries again")
            if not self._looked:
                await self._show(reply.notes, reply.tables)
            return
        self._looked = True
        *notes, verdict = reply.notes  # the last one sums the others up
        sign, color = _SIGNS[verdict.level]
        self._say(Content.assemble((sign, color), " ", verdict.text))
        await self._show(notes, reply.tables)

    def _say(self, text: str | Content) -> None:
        self.query_one("#verdict", Static).update(text)

    async def _show(self, notes: Sequence[Note], tables: Sequence[Table]) -> None:
        found, place = self.found, self.found.scroll_offset.y
        chosen = self.chosen.note.text if self.chosen else ""
        async with self.batch():
            await found.remove_children()
            await found.mount_all([*map(Finding, _by_weight(notes)), *map(Facts, tables)])
        if place:
            found.call_after_refresh(found.scroll_to, y=place, animate=False)
        fixes = self._fixes()
        if fixes:
            again = next((finding for finding in fixes if finding.note.text == chosen), fixes[0])
            self.set_focus(again, scroll_visible=False)
        self.refresh_bindings()

    # -- Keys

    def _fixes(self) -> list[Finding]:
        return [finding for finding in self.query(Finding) if finding.can_focus]

    def action_move(self, step: int) -> None:
        """From fix to fix while the chosen one is in sight; else by a line."""
        fixes, chosen = self._fixes(), self.chosen
        if chosen and chosen.region.overlaps(self.found.region):
            place = fixes.index(chosen) + step
            if 0 <= place < len(fixes):
                self.set_focus(fixes[place])
                return
        self.found.scroll_relative(y=step, animate=False)

    def action_page(self, step: int) -> None:
        self.found.scroll_relative(y=step * self.found.size.height, animate=False)

    def action_top(self) -> None:
        self.found.scroll_home(animate=False)

    def action_end(self) -> None:
        self.found.scroll_end(animate=False)

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        if action == "copy":
            return self.chosen is not None
        return super().check_action(action, parameters)

    def on_descendant_focus(self) -> None:
        self.refresh_bindings()

    def action_copy(self) -> None:
        if self.chosen:
            self.app.copy_to_clipboard(self.chosen.note.fix)
            self.notify(f"copied: {self.chosen.note.fix}", markup=False)


def _by_weight(notes: Sequence[Note]) -> list[Note]:
    return sorted(notes, key=lambda note: _ORDER.index(note.level))


SCREEN = DoctorScreen
