"""Drawn: the base of widgets that are drawn anew for whatever width they are given."""

from __future__ import annotations

from textual.content import Content
from textual.geometry import Size
from textual.widget import Widget


class Drawn(Widget):
    """As high as what is drawn; a new theme draws it again, in its colours."""

    DEFAULT_CSS = "Drawn { height: auto; width: 1fr; }"

    def draw(self, width: int) -> list[Content]:
        """One Content a line, none wider than `width`."""
        raise NotImplementedError

    def on_mount(self) -> None:
        self.app.theme_changed_signal.subscribe(self, lambda theme: self.redraw())

    def redraw(self) -> None:
        """Whatever lies beside it is laid out anew only when its height changes."""
        width, height = self.size
        self.refresh(layout=not width or len(self.draw(width)) != height)

    def get_content_height(self, container: Size, viewport: Size, width: int) -> int:
        return len(self.draw(width))

    def render(self) -> Content:
        return Content("\n").join(self.draw(self.size.width))
