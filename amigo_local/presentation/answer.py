"""One answer of an evaluation: its question, what was found about it, and its text."""

from __future__ import annotations

from amigo_local.domain.artifact import Figure
from amigo_local.domain.events import AnswerShown


def answer_lines(event: AnswerShown) -> list[str]:
    """Untrusted text: what shows it makes control characters visible."""
    figures = ", ".join(f"{name} {_shown(value)}" for name, value in event.figures.items())
    return [
        f"{event.suite} {event.prompt_id}, {event.label} ({event.model}): {event.verdict}",
        figures,
        "question:",
        *(f"  {line}" for line in event.prompt.splitlines()),
        "answer:",
        *(f"  {line}" for line in event.answer.splitlines()),
    ]


def _shown(value: Figure) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:.4g}" if isinstance(value, float) else "none" if value is None else str(value)
