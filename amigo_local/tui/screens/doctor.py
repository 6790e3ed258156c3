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

from amigo_local.domain.events import Note
from amigo_local.tui.asking import Reply
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


class DoctorScreen(AmigoScreen):
    NAME = "doctor"
    DEFAULT_CSS = """
    DoctorScreen {
        #verdict { padding: 0 1; text-style: bold; }
        #found { height: 1fr; }
    }
    """
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("f5", "look", "Look again"),
        Binding("c,enter", "copy", "Copy the fix"),
        Binding("down,j", "app.focus_next", "Next fix", show=False),
        Binding("up,k", "app.focus_previous", "Fix before", show=False),
    ]

    def __init__(self) -> None:
        super().__init__()
        self._looked = False

    def body(self) -> ComposeResult:
        yield Static("looking…", id="verdict", markup=False)
        yield VerticalScroll(id="found", can_focus=False)

    def shown(self) -> None:
        if not self._looked:
            self.action_look()

    def action_look(self) -> None:
        self.query_one("#verdict", Static).update("looking…")
        self._look()

    @work(group="doctor", exclusive=True)
    async def _look(self) -> None:
        reply = await self.session.ask("doctor")
        if reply.error:
            self.query_one("#verdict", Static).update("the look wasn't finished; f5 tries again")
            self.amigo.show_failure(reply.error)
        if reply.notes or reply.tables:
            self._looked = True
            await self._show(reply)

    async def _show(self, reply: Reply) -> None:
        """The verb's last note sums the others up."""
        *notes, verdict = reply.notes
        sign, color = _SIGNS[verdict.level]
        self.query_one("#verdict", Static).update(Content.assemble((sign, color), " ", verdict.text))
        found = self.query_one("#found", VerticalScroll)
        place = found.scroll_offset
        async with self.batch():
            await found.remove_children()
            await found.mount_all([*map(Finding, _by_weight(notes)), *map(Facts, reply.tables)])
        found.scroll_to(place.x, place.y, animate=False)
        first = next((finding for finding in self.query(Finding) if finding.can_focus), None)
        if first:
            self.set_focus(first, scroll_visible=False)
        self.refresh_bindings()

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        if action == "copy":
            return isinstance(self.focused, Finding)
        return super().check_action(action, parameters)

    def on_descendant_focus(self) -> None:
        self.refresh_bindings()

    def action_copy(self) -> None:
        if isinstance(self.focused, Finding):
            self.app.copy_to_clipboard(self.focused.note.fix)
            self.notify(f"copied: {self.focused.note.fix}", markup=False)


def _by_weight(notes: Sequence[Note]) -> list[Note]:
    return sorted(notes, key=lambda note: _ORDER.index(note.level))


SCREEN = DoctorScreen
