"""FieldRow: one setting on one line. FieldEditor: the same being typed, with what is wrong with it below."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from textual import events
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Vertical
from textual.content import Content
from textual.message import Message
from textual.suggester import SuggestFromList
from textual.widgets import Input, Static, TextArea

from amigo_local.engine.form_field import FormField
from amigo_local.engine.setting_text import yaml_text

NAME_WIDTH = 24
_LINES = (3, 10)
"""Least and most of an editor of several lines."""


class FieldRow(Static, can_focus=True):
    """`● rank   8 (was 16)`. Says what is asked for; the form does it."""

    DEFAULT_CSS = """
    FieldRow {
        height: auto; padding: 0 1; pointer: pointer; text-wrap: nowrap; text-overflow: ellipsis;
        &:hover { background: $foreground 5%; }
        &:focus { background: $primary 20%; }
        &.-changed { color: $accent; text-style: bold; }
        &.-wrong { color: $error; }
    }
    """
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("enter", "edit", "Edit"),
        Binding("space", "step", "Next choice", show=False),
        Binding("u", "revert", "Undo change"),
    ]

    @dataclass
    class Asked(Message):
        """edit: type another value; step: take the next of its words; revert: as it was loaded."""

        row: FieldRow
        what: str

        @property
        def control(self) -> FieldRow:
            return self.row

    def __init__(self, field: FormField) -> None:
        super().__init__(markup=False)
        self.field = field

    def show(self, value: Any, changed: bool, problem: str = "") -> None:
        """problem: what is wrong with it together with other settings."""
        shown = _short(self.field, value)
        mark = "✗" if problem else "●" if changed else " "
        parts = [Content(f"{mark} {self.field.name:<{NAME_WIDTH}} "), Content(shown)]
        if changed:
            parts.append(Content.from_markup("[dim not bold]  was $old[/]", old=_short(self.field, self.field.value)))
        if problem:
            parts.append(Content(f"\n  {problem}"))
        self.update(Content.assemble(*parts))
        self.set_class(changed, "-changed").set_class(bool(problem), "-wrong")

    def action_edit(self) -> None:
        self.post_message(self.Asked(self, "step" if self.field.kind == "bool" else "edit"))

    def action_step(self) -> None:
        if self.field.kind in ("bool", "choice"):
            self.post_message(self.Asked(self, "step"))

    def action_revert(self) -> None:
        self.post_message(self.Asked(self, "revert"))

    def on_click(self, event: events.Click) -> None:
        event.stop()
        if event.chain == 2:
            self.action_edit()


def _short(field: FormField, value: Any) -> str:
    text = field.shown(value)
    return text or ("none" if field.optional else '""')


def field_help(field: FormField) -> str:
    """What it is, what it may be, and where its value comes from."""
    words = ", ".join(field.choices)
    kind = f"{field.kind} of {words}" if words else field.kind
    kind += f" {field.bounds}" if field.bounds else ""
    kind += ", may be left empty" if field.optional else ""
    default = field.shown(field.default) or ("none" if field.optional else '""')
    return f"{field.key}: {kind}; default {default}; from {field.origin}\n{field.doc}"


class FieldEditor(Vertical):
    """Stands below its row while it is typed into. What it holds counts as soon as it is valid."""

    DEFAULT_CSS = """
    FieldEditor {
        height: auto; padding: 0 1 0 3;
        Input { width: 1fr; background: $panel; }
        TextArea { height: 3; border: none; padding: 0; background: $panel; }
        Static { height: auto; color: $error; display: none; }
        &.-wrong Static { display: block; }
    }
    """
    BINDINGS: ClassVar[list[BindingType]] = [Binding("escape", "cancel", "Leave as it was")]

    @dataclass
    class Typed(Message):
        editor: FieldEditor
        text: str

    @dataclass
    class Left(Message):
        """kept: False when what was typed shall not count."""

        editor: FieldEditor
        kept: bool

    def __init__(self, field: FormField, value: Any, changed: bool) -> None:
        super().__init__()
        self.field, self.before, self.was_changed = field, value, changed
        """The value when typing began, and whether it was a change already."""

    def compose(self) -> ComposeResult:
        if self.field.kind == "yaml":
            text = yaml_text(self.before).rstrip("\n") if self.before else ""
            area = TextArea(text, soft_wrap=True, tab_behavior="focus", show_line_numbers=False, compact=True)
            area.styles.height = min(max(text.count("\n") + 1, _LINES[0]), _LINES[1])
            yield area
        else:
            suggester = SuggestFromList(self.field.choices, case_sensitive=False) if self.field.choices else None
            placeholder = "none" if self.field.optional else ""
            yield Input(self.field.shown(self.before), suggester=suggester, placeholder=placeholder, compact=True)
        yield Static(markup=False)

    @property
    def text(self) -> str:
        area = self.query(TextArea)
        return area.first().text if area else self.query_one(Input).value

    def begin(self) -> None:
        self.query("TextArea, Input").first().focus()

    def show_problem(self, text: str) -> None:
        """Empty: there is none."""
        self.query_one(Static).update(text)
        self.set_class(bool(text), "-wrong")

    def on_input_changed(self, event: Input.Changed) -> None:
        event.stop()
        self.post_message(self.Typed(self, event.value))

    def on_text_area_changed(self, event: TextArea.Changed) -> None:
        event.stop()
        lines = event.text_area.document.line_count
        event.text_area.styles.height = min(max(lines, _LINES[0]), _LINES[1])
        self.post_message(self.Typed(self, event.text_area.text))

    def on_input_submitted(self, event: Input.Submitted) -> None:
        event.stop()
        if not self.has_class("-wrong"):
            self.post_message(self.Left(self, kept=True))

    def on_descendant_blur(self) -> None:
        """Something invalid stays open until it is mended or given up: nothing typed is lost."""
        if not self.has_class("-wrong"):
            self.post_message(self.Left(self, kept=True))

    def action_cancel(self) -> None:
        self.post_message(self.Left(self, kept=False))
