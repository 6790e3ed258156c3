"""EvaluationProgress: how far an evaluation is that goes on, and how it ended."""

from __future__ import annotations

from textual.content import Content

from amigo_local.domain.events import Progress
from amigo_local.domain.pipeline import PipelineStatus
from amigo_local.presentation.sentences import sentence
from amigo_local.presentation.visible_text import visible
from amigo_local.tui.widgets.drawn import Drawn
from amigo_local.tui.widgets.ink import MUTED, cut, folded
from amigo_local.tui.widgets.status_signs import COLORS, GLYPHS

_TITLE_LINES = 3


class EvaluationProgress(Drawn):
    """Hidden until something is shown."""

    DEFAULT_CSS = "EvaluationProgress { padding: 0 1; display: none; }"

    def __init__(self) -> None:
        super().__init__()
        self._status: PipelineStatus = "waiting"
        self._title = ""
        self._progress: Progress | None = None

    def show(self, status: PipelineStatus, title: str, progress: Progress | None) -> None:
        self.display = True
        self._status, self._title, self._progress = status, title, progress
        self.redraw()

    def draw(self, width: int) -> list[Content]:
        sign, color, progress = GLYPHS[self._status], COLORS[self._status], self._progress
        title = list(folded(visible(self._title), max(8, width - 2)))[:_TITLE_LINES]
        lines = [Content.assemble((sign, color), f" {self._status}")]
        lines += [Content.styled(cut(f"  {line}", width), MUTED) for line in title]
        if progress:
            lines.append(Content(cut(f"  {visible(sentence(progress))}", width)))
            if progress.total:
                room = max(4, width - 9)
                share = min(1.0, progress.done / progress.total)
                filled = round(room * share)
                bar = ("█" * filled, "$primary"), ("░" * (room - filled), MUTED)
                lines.append(Content.assemble("  ", *bar, f" {100 * share:3.0f} %"))
        return lines
