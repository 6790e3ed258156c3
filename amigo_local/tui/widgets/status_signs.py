"""The sign and colour of each status, the same wherever one is shown."""

from __future__ import annotations

from amigo_local.domain.pipeline import PipelineStatus
from amigo_local.tui.widgets.ink import MUTED

GLYPHS: dict[PipelineStatus, str] = {
    "done": "✓", "running": "▶", "next": "●", "waiting": "○", "stale": "↻", "failed": "✗",
    "cancelled": "■", "paused": "‖",
}  # fmt: skip
COLORS: dict[PipelineStatus, str] = {
    "done": "$success", "running": "$primary", "next": "$accent", "waiting": MUTED, "stale": "$warning",
    "failed": "$error", "cancelled": "$warning", "paused": "$warning",
}  # fmt: skip
