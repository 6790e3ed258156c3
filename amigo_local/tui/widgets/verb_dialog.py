"""VerbDialog: a few settings of a verb as a small form, with the help that the command line gives."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import msgspec
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal, Vertical, VerticalScroll
from textual.content import Content
from textual.screen import ModalScreen
from textual.suggester import SuggestFromList
from textual.widgets import Button, Input, Select, Static

from amigo_local.domain.errors import InputError
from amigo_local.engine.form_field import FormField, fields_of

_NO_YES = ("no", "yes")
_OPEN = "default"
"""What stands for a choice that is left open."""


class VerbDialog(ModalScreen[dict[str, Any]]):
    """Answers with the settings that were asked for; None when it was left."""

    DEFAULT_CSS = """
    VerbDialog {
        align: center middle;
        #box {
            width: 72; max-width: 96%; height: auto; max-height: 96%;
            border: round $primary; background: $surface; padding: 0 2;
        }
        #question { text-style: bold; height: auto; margin-bottom: 1; }
        VerticalScroll { height: auto; max-height: 16; }
        .row { height: auto; min-height: 1; }
        .label { width: 16; color: $text-muted; }
        Input { width: 1fr; background: $background; }
        Select { width: 1fr; }
        .help { color: $text-muted; height: auto; padding-left: 16; margin-bottom: 1; }
        #problem { color: $error; height: auto; display: none; margin-bottom: 1; }
        #buttons { height: auto; align-horizontal: center; }
        Button { margin: 0 1; }
    }
    """
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape", "dismiss(None)", "Back"),
        Binding("ctrl+s", "submit", "Do it"),
    ]

    def __init__(
        self,
        question: str,
        action: str,
        params: msgspec.Struct,
        names: Sequence[str],
        suggestions: Mapping[str, Sequence[str]] | None = None,
    ) -> None:
        """params: what the form begins with, all else as it is to be. suggestions: name -> completions."""
        super().__init__()
        self._question, self._action = question, action
        self._suggestions = suggestions or {}
        known = {field.key: field for field in fields_of(params, {})}
        self.fields: tuple[FormField, ...] = tuple(known[name] for name in names)

    def compose(self) -> ComposeResult:
        with Vertical(id="box"):
            yield Static(self._question, id="question", markup=False)
            with VerticalScroll(can_focus=False):
                for field in self.fields:
                    with Horizontal(classes="row"):
                        yield Static(field.name.replace("_", " "), classes="label", markup=False)
                        yield self._editor(field)
                    yield Static(field.doc, classes="help", markup=False)
            yield Static(id="problem", markup=False)
            with Horizontal(id="buttons"):
                yield Button(Content(f"{self._action} (ctrl+s)"), id="do", variant="primary")
                yield Button("Back (escape)", id="back")

    def _editor(self, field: FormField) -> Input | Select[str]:
        if field.kind == "bool":
            return _one_of(_NO_YES, _NO_YES[bool(field.value)], field.key)
        if field.kind == "choice":
            words = [*([_OPEN] if field.optional else []), *field.choices]
            return _one_of(words, field.value or words[0], field.key)
        suggested = self._suggestions.get(field.name, ())
        completion = SuggestFromList(suggested, case_sensitive=False) if suggested else None
        return Input(field.shown(field.value), compact=True, suggester=completion, id=field.key)

    def on_mount(self) -> None:
        self.query_one(f"#{self.fields[0].key}").focus()

    def on_input_submitted(self, event: Input.Submitted) -> None:
        """From one field to the next, and from the last on with it."""
        event.stop()
        inputs = list(self.query(Input))
        place = inputs.index(event.input)
        following = [field for field in inputs[place + 1 :] if not field.value]
        if following and not event.value.strip():
            following[0].focus()
        else:
            self.action_submit()

    def on_button_pressed(self, event: Button.Pressed) -> None:
        event.stop()
        if event.button.id == "do":
            self.action_submit()
        else:
            self.dismiss(None)

    def action_submit(self) -> None:
        """Checks every field; the first that is wrong says so and gets the cursor."""
        found: dict[str, Any] = {}
        for field in self.fields:
            widget = self.query_one(f"#{field.key}")
            try:
                found[field.key] = self._value(field, widget)
            except InputError as error:
                problem = self.query_one("#problem", Static)
                problem.update(f"✗ {error.message}" + (f"\nhint: {error.hint}" if error.hint else ""))
                problem.display = True
                widget.focus()
                return
        self.dismiss(found)

    def _value(self, field: FormField, widget: object) -> Any:
        if isinstance(widget, Select):
            chosen = widget.value
            return chosen == _NO_YES[1] if field.kind == "bool" else None if chosen == _OPEN else chosen
        assert isinstance(widget, Input)
        text = widget.value.strip()
        if not text and not field.optional:
            raise InputError(f"{field.name.replace('_', ' ')} is needed", field.doc)
        return field.check(text)


def _one_of(words: Sequence[str], chosen: str, key: str) -> Select[str]:
    return Select.from_values(words, value=chosen, compact=True, allow_blank=False, id=key)
