"""FormView: a SettingsForm as sections of rows that can be filtered, edited in place and put back."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from textual import events
from textual.binding import Binding, BindingType
from textual.containers import VerticalScroll
from textual.message import Message
from textual.widget import Widget
from textual.widgets import Static

from amigo_local.domain.errors import InputError
from amigo_local.engine.form_field import FormField
from amigo_local.engine.settings_form import SettingsForm
from amigo_local.tui.widgets.field_row import FieldEditor, FieldRow

AnyForm = SettingsForm[Any]
MAX_CHARACTERS = 20_000
"""Of one setting: more can't be checked between two keys."""
_FOLDED = ("data.difficulty", "train.dpo", "train.memory", "export", "register", "evaluate", "gate")
"""Sections that few change: shut at first."""


_TYPES = re.compile(r"`([\w |]+)`")
_WORDS = {
    "int": "a whole number",
    "float": "a number",
    "str": "text",
    "bool": "true or false",
    "array": "a list",
    "object": "a table",
    "null": "nothing",
}


class SectionHeader(Static, can_focus=True):
    DEFAULT_CSS = """
    SectionHeader {
        height: 1; padding: 0 1; color: $primary; text-style: bold; pointer: pointer;
        &:hover { background: $foreground 5%; }
        &:focus { background: $primary 20%; }
    }
    """
    BINDINGS: ClassVar[list[BindingType]] = [Binding("enter,space", "fold", "Open/shut", show=False)]

    @dataclass
    class Toggled(Message):
        header: SectionHeader

    def __init__(self, title: str) -> None:
        super().__init__(markup=False)
        self.title, self.is_open = title, title not in _FOLDED

    def show(self, is_open: bool, changed: int) -> None:
        self.update(f"{'▾' if is_open else '▸'} {self.title}{f'  {changed} changed' if changed else ''}")

    def action_fold(self) -> None:
        self.is_open = not self.is_open
        self.post_message(self.Toggled(self))

    def on_click(self, event: events.Click) -> None:
        event.stop()
        self.action_fold()


class FormView(VerticalScroll, can_focus=False):
    DEFAULT_CSS = "FormView { scrollbar-size-vertical: 1; }"
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("up", "move(-1)", "Up", show=False),
        Binding("down", "move(1)", "Down", show=False),
    ]

    @dataclass
    class Changed(Message):
        """A value is another one: `form` is the form as it is now."""

        form: AnyForm

    @dataclass
    class Looked(Message):
        """Another field has the focus; None: none of them."""

        field: FormField | None

    def __init__(self, *, id: str | None = None) -> None:
        super().__init__(id=id)
        self.form: AnyForm | None = None
        self._rows: dict[str, FieldRow] = {}
        self._headers: dict[str, SectionHeader] = {}
        self._editors: dict[str, FieldEditor] = {}
        self._words: list[str] = []
        self._problems: Mapping[str, str] = {}

    # -- What is shown

    async def show(self, form: AnyForm | None) -> None:
        """Rows are kept where the fields are the same ones: another stage of a chain, or other values."""
        same = set(form.keys if form else ()) == set(self._rows)
        self.form, self._problems = form, {}
        for editor in list(self._editors.values()):
            await self._shut(editor)
        if not same:
            await self._build()
        for row in self._rows.values():
            assert form
            row.field = form.field(row.field.key)
        self._draw()

    async def _build(self) -> None:
        await self.remove_children()
        self._rows, self._headers = {}, {}
        sections: dict[str, list[Widget]] = {}
        for field in self.form.fields if self.form else ():
            title = section_title(field)
            if title not in self._headers:
                self._headers[title] = SectionHeader(title)
                sections[title] = [self._headers[title]]
            self._rows[field.key] = FieldRow(field)
            sections[title].append(self._rows[field.key])  # also what comes after a section within this one
        await self.mount_all([widget for section in sections.values() for widget in section])

    def show_problems(self, problems: Mapping[str, str]) -> None:
        """Key -> what is wrong with it together with other settings."""
        self._problems = problems
        self._draw()

    def filter(self, text: str) -> None:
        """Only fields that have every word in their key, help or value; empty: all."""
        self._words = text.casefold().split()
        self._draw()

    def _draw(self) -> None:
        if self.form is None:
            return
        for key, row in self._rows.items():
            row.show(self.form.value(key), key in self.form.edits, self._problems.get(key, ""))
            row.display = self._is_found(row.field)
            if key in self._editors:
                self._editors[key].display = row.display
        for title, header in self._headers.items():
            mine = [row for row in self._rows.values() if section_title(row.field) == title]
            header.show(header.is_open or bool(self._words), sum(row.field.key in self.form.edits for row in mine))
            header.display = not self._words or any(row.display for row in mine)

    def _is_found(self, field: FormField) -> bool:
        assert self.form
        if not self._words:
            return self._headers[section_title(field)].is_open
        text = f"{field.key} {field.doc} {self.form.text(field.key)} {' '.join(field.choices)}".casefold()
        return all(word in text for word in self._words)

    # -- Moving about

    @property
    def stops(self) -> list[Widget]:
        """What the focus goes through, top to bottom."""
        return [child for child in self.children if child.display and isinstance(child, SectionHeader | FieldRow)]

    def focus_first(self) -> None:
        """The first field that shows, with the name of its section."""
        rows = [stop for stop in self.stops if isinstance(stop, FieldRow)]
        if rows:
            self.scroll_home(animate=False)
            rows[0].focus(scroll_visible=False)

    def action_move(self, by: int) -> None:
        stops, focused = self.stops, self.screen.focused
        while focused and focused.parent is not self:
            focused = focused.parent if isinstance(focused.parent, Widget) else None
        if isinstance(focused, FieldEditor):
            focused = self._rows[focused.field.key]
        if focused in stops:
            stops[max(0, min(stops.index(focused) + by, len(stops) - 1))].focus()

    def on_descendant_focus(self, event: events.DescendantFocus) -> None:
        widget: Any = event.widget
        while widget is not self and not isinstance(widget, FieldRow | FieldEditor | SectionHeader):
            widget = widget.parent
        self.post_message(self.Looked(widget.field if isinstance(widget, FieldRow | FieldEditor) else None))

    def on_section_header_toggled(self, event: SectionHeader.Toggled) -> None:
        event.stop()
        self._draw()

    # -- Changing

    async def on_field_row_asked(self, event: FieldRow.Asked) -> None:
        event.stop()
        field = event.row.field
        if self.form is None:
            return
        match event.what:
            case "edit":
                await self._open(event.row)
            case "step":
                self._take(self.form.put(field.key, next_choice(field, self.form.value(field.key))))
            case "revert":
                if editor := self._editors.get(field.key):
                    await self._shut(editor)
                self._take(self.form.revert(field.key))

    async def _open(self, row: FieldRow) -> None:
        assert self.form
        if row.field.key not in self._editors:
            key = row.field.key
            editor = self._editors[key] = FieldEditor(row.field, self.form.value(key), key in self.form.edits)
            await self.mount(editor, after=row)
        self._editors[row.field.key].begin()

    def on_field_editor_typed(self, event: FieldEditor.Typed) -> None:
        event.stop()
        assert self.form
        key = event.editor.field.key
        if len(event.text) > MAX_CHARACTERS:
            event.editor.show_problem(f"{len(event.text):,} characters are too many; the most is {MAX_CHARACTERS:,}")
            return
        try:
            value = self.form.check(key, event.text)
        except InputError as error:
            said = in_plain_words(error.message.removeprefix(f"{key}: "))
            event.editor.show_problem(f"{said}\n{error.hint}" if error.hint else said)
            return
        event.editor.show_problem("")
        if value != self.form.value(key):
            self._take(self.form.put(key, value))

    async def on_field_editor_left(self, event: FieldEditor.Left) -> None:
        event.stop()
        key, had_focus = event.editor.field.key, event.editor.has_focus_within
        if key not in self._editors or self.form is None:
            return
        if not event.kept:
            was = event.editor
            self._take(self.form.put(key, was.before) if was.was_changed else self.form.revert(key))
        await self._shut(event.editor)
        if had_focus:
            self._rows[key].focus()

    async def _shut(self, editor: FieldEditor) -> None:
        self._editors.pop(editor.field.key, None)
        await editor.remove()

    def _take(self, form: AnyForm) -> None:
        if self.form is None or (form.edits == self.form.edits and form.settings == self.form.settings):
            return
        self.form = form
        self._draw()
        self.post_message(self.Changed(form))


def in_plain_words(message: str) -> str:
    """msgspec's names of types as whoever fills in a form would say them."""
    message = message.removeprefix("found None: ")
    return _TYPES.sub(lambda found: " or ".join(_WORDS.get(name, name) for name in found[1].split(" | ")), message)


def section_title(field: FormField) -> str:
    """Settings that are in no section are the recipe's own, but for tables, which are sections themselves."""
    return field.section or (field.name if isinstance(field.value, dict) else "recipe")


def next_choice(field: FormField, value: Any) -> Any:
    """The value after this one, of a yes or no or of a choice; what may be left open has that in its round."""
    values: list[Any] = [False, True] if field.kind == "bool" else list(field.choices)
    values += [None] if field.optional else []
    return values[(values.index(value) + 1) % len(values)]
