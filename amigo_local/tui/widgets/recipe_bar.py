"""RecipeBar: which recipe, for which model, planned for how large a machine; one line."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from textual import on
from textual.app import ComposeResult
from textual.containers import Horizontal
from textual.content import Content
from textual.message import Message
from textual.suggester import SuggestFromList
from textual.widgets import Input, Select, Static

from amigo_local.engine.recipe_list import RecipeEntry

Chosen = tuple[str, ...]
"""Names or paths of recipes; several make a chain."""


class RecipeBar(Horizontal):
    DEFAULT_CSS = """
    RecipeBar {
        height: 1; margin-top: 1;
        .label { width: auto; padding: 0 1; color: $text-muted; }
        #recipe { width: 1fr; max-width: 40; }
        #recipe SelectOverlay { min-width: 40; max-height: 16; }
        #model { width: 2fr; background: $panel; }
        #vram, #ram { width: 8; background: $panel; }
    }
    """

    @dataclass
    class Picked(Message):
        recipe: Chosen

    @dataclass
    class Asked(Message):
        """Another model or machine; empty: the recipe's own model, this machine."""

        model: str
        vram: str
        ram: str

    def __init__(self) -> None:
        super().__init__()
        self._chosen: Chosen = ()

    def compose(self) -> ComposeResult:
        yield Static("recipe", classes="label")
        yield Select[Chosen]([], prompt="choose", compact=True, id="recipe")
        for name, title in (("model", "model"), ("vram", "VRAM"), ("ram", "RAM")):
            yield Static(title, classes="label")
            placeholder = "the recipe's own" if name == "model" else "this"
            yield Input(placeholder=placeholder, compact=True, max_length=1000, id=name)

    def show_asked(self, asked: Asked) -> None:
        """As somebody else has set it; says nothing of its own."""
        for name in ("model", "vram", "ram"):
            field, value = self.query_one(f"#{name}", Input), getattr(asked, name)
            if field.value.strip() != value:
                with field.prevent(Input.Changed):
                    field.value = value

    def show_recipes(self, entries: Sequence[RecipeEntry], chosen: Chosen) -> None:
        """The recipes there are, and which of them is chosen; one from elsewhere is added."""
        options: list[tuple[Content, Chosen]] = [(Content(_label(entry)), (entry.name,)) for entry in entries]
        if chosen and chosen not in [value for _, value in options]:
            options.append((Content(" → ".join(Path(name).name for name in chosen)), chosen))
        picker = self.picker
        with picker.prevent(Select.Changed):
            picker.set_options(options)
            if chosen:
                picker.value = self._chosen = chosen

    def complete_models(self, names: Sequence[str]) -> None:
        """What the model's name is completed to, with the right arrow."""
        self.query_one("#model", Input).suggester = SuggestFromList(names, case_sensitive=False)

    @property
    def picker(self) -> Select[Chosen]:
        return self.query_one("#recipe", Select)

    def pick(self) -> None:
        """Opens the list."""
        self.picker.focus()
        self.picker.action_show_overlay()

    @on(Select.Changed, "#recipe")
    def _picked(self, event: Select.Changed) -> None:
        event.stop()
        if isinstance(event.value, tuple):
            self._chosen = event.value
            self.post_message(self.Picked(event.value))
        elif self._chosen:  # the line that says `choose` chooses nothing
            with self.picker.prevent(Select.Changed):
                self.picker.value = self._chosen

    @on(Input.Changed)
    def _asked(self, event: Input.Changed) -> None:
        event.stop()
        values = [self.query_one(f"#{name}", Input).value.strip() for name in ("model", "vram", "ram")]
        self.post_message(self.Asked(*values))


def _label(entry: RecipeEntry) -> str:
    name = entry.path.name if entry.name == str(entry.path) else entry.name
    if entry.error:
        return f"✗ {name}"
    return f"{name} ({len(entry.stages)} stages)" if entry.is_chain else name
