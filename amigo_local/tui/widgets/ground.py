"""Ground: the own style of a widget that draws its lines itself, looked up once a drawing and not once a line."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.style import Style
from textual.geometry import Region
from textual.strip import Strip

if TYPE_CHECKING:
    from textual.widget import Widget as Base
else:
    Base = object  # of two widget classes, Textual would take the styles of the first alone


class Ground(Base):
    """To be put before a widget class. Textual takes 0.1 ms to find out a `rich_style`."""

    ground: Style = Style()
    """Valid in `render_line`."""

    def render_lines(self, crop: Region) -> list[Strip]:
        self.ground = self.rich_style
        return super().render_lines(crop)
