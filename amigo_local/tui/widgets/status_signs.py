"""The sign and colour of each status, the same wherever one is shown."""

from __future__ import annotations

from amigo_local.domain.pipeline import PipelineStatus
from amigo_local.tui.widgets.ink import MUTED

GLYPHS: dict[PipelineStatus, str] = {
    "done": "✓", "running": "▶", "next": "●", "waiting": "○", "stale": "↻", "failed": "✗",
    "cancelled": "■", "paused": "‖",
}  # fmt: skip
_SIGNS = {str(status): glyph for status, glyph in GLYPHS.items()} | {"cut": GLYPHS["cancelled"]}
COLORS: dict[PipelineStatus, str] = {
    "done": "$success", "running": "$primary", "next": "$accent", "waiting": MUTED, "stale": "$warning",
    "failed": "$error", "cancelled": "$warning", "paused": "$warning",
}  # fmt: skip


def signed(word: str) -> str:
    """`✓ done`, `■ cut`: a status by the word that a verb has for it."""
    return f"{_SIGNS.get(word, '·')} {word}"
