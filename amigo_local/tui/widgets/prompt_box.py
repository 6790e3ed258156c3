"""PromptBox: where one types a prompt; Enter sends it, and what was sent before comes back with the arrow keys."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import ClassVar

from textual import events
from textual.binding import Binding, BindingType
from textual.message import Message
from textual.widgets import TextArea

from amigo_local.presentation.visible_text import visible

TYPED_CHARACTERS = 4000
"""What is longer is held aside: the editor wraps a whole paragraph anew at each key."""

_NEW_LINE = ("ctrl+j", "shift+enter", "alt+enter", "shift+\r")
"""Ctrl+J comes from every terminal. Shift+Enter and Alt+Enter do where the kitty protocol is spoken; elsewhere they are
Enter, but for xterm's modifyOtherKeys, which is the last one."""


class PromptBox(TextArea):
    """Long pastes stand in it as one word each, `[pasted 1: 200,000 characters]`, and are sent in full."""

    DEFAULT_CSS = """
    PromptBox {
        height: auto; min-height: 3; max-height: 8; border: round $border; padding: 0 1; background: $background;
        scrollbar-size-vertical: 1;
        &:focus { border: round $primary; }
    }
    """
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("enter", "submit", "Send"),
        Binding("ctrl+j", "new_line", "New line"),
        Binding("up", "earlier", "Earlier", show=False),
        Binding("down", "later", "Later", show=False),
    ]

    class Submitted(Message):
        def __init__(self, text: str) -> None:
            super().__init__()
            self.text = text

    class Held(Message):
        """A paste was too long to be edited, and is held aside."""

        def __init__(self, word: str) -> None:
            super().__init__()
            self.word = word

    def __init__(self, text: str = "", prompts: Sequence[str] = (), id: str | None = None) -> None:
        super().__init__(id=id, soft_wrap=True, highlight_cursor_line=False, placeholder="Ask both models …")
        self.prompts = list(prompts)
        """What was sent before, the oldest first."""
        self._held: dict[str, str] = {}
        self._pasted = 0
        self._place: int | None = None
        """Which of the history is shown; None: what is being written."""
        self._edited: dict[int | None, str] = {}
        """What was written at the other places."""
        self.full_text = text

    # -- The text

    @property
    def full_text(self) -> str:
        """With every paste in its place."""
        if not self._held:
            return self.text
        words = re.compile("|".join(map(re.escape, self._held)))
        return words.sub(lambda found: self._held[found[0]], self.text)

    @full_text.setter
    def full_text(self, text: str) -> None:
        self._show(self._hold(text) if self._is_long(text) else text)

    def replace_by(self, text: str) -> None:
        """What was being written joins the history: arrow up brings it back."""
        if self._place is None and self.text.strip() and self.full_text not in self.prompts:
            self.prompts.append(self.full_text)
        self._place, self._edited = None, {}
        self._show("")
        self.full_text = text

    def _show(self, text: str) -> None:
        self.load_text(text)
        self.move_cursor(self.document.end)

    def _is_long(self, text: str) -> bool:
        return len(text) + len(self.text) > TYPED_CHARACTERS and len(text) > TYPED_CHARACTERS // 10

    def _hold(self, text: str) -> str:
        self._pasted += 1
        word = f"[pasted {self._pasted}: {len(text):,} characters]"
        self._held[word] = text
        return word

    async def _on_paste(self, event: events.Paste) -> None:
        event.stop()
        event.prevent_default()
        # Terminals send a carriage return for each line end.
        text = visible(event.text.replace("\r\n", "\n").replace("\r", "\n"))
        if self._is_long(text):
            text = self._hold(text)
            self.post_message(self.Held(text))
        if result := self._replace_via_keyboard(text, *self.selection):
            self.move_cursor(result.end_location)
        self.focus()

    # -- Keys

    async def _on_key(self, event: events.Key) -> None:
        """Before the editor sees it, to which Enter is a new line."""
        if event.key == "enter" or event.key in _NEW_LINE:
            event.stop()
            event.prevent_default()
            self.action_submit() if event.key == "enter" else self.action_new_line()

    def action_submit(self) -> None:
        text = self.full_text
        if not text.strip():
            return
        self.post_message(self.Submitted(text))

    def sent(self, text: str) -> None:
        """It is on its way: it joins the history, and the box is empty."""
        if not self.prompts or self.prompts[-1] != text:
            self.prompts.append(text)
        self._place, self._edited = None, {}
        self._held.clear()
        self._show("")

    def action_new_line(self) -> None:
        self._replace_via_keyboard("\n", *self.selection)

    def action_earlier(self) -> None:
        place = len(self.prompts) if self._place is None else self._place
        if self.navigator.is_first_wrapped_line(self.cursor_location) and place > 0:
            self._go_to(place - 1)
        else:
            self.action_cursor_up()

    def action_later(self) -> None:
        if self._place is None or not self.navigator.is_last_wrapped_line(self.cursor_location):
            self.action_cursor_down()
        else:
            self._go_to(self._place + 1 if self._place + 1 < len(self.prompts) else None)

    def _go_to(self, place: int | None) -> None:
        self._edited[self._place] = self.text
        self._place = place
        if place in self._edited:
            self._show(self._edited[place])
        else:
            self._show("")
            self.full_text = "" if place is None else self.prompts[place]
