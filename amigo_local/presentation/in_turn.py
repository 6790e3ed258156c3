"""InTurn: two answers that come at the same time, put one behind the other for a face that shows one column."""

from __future__ import annotations

from amigo_local.domain.events import (
    GenerationFinished,
    Record,
    StageCancelled,
    StageFailed,
    StageFinished,
    TokenGenerated,
)


class InTurn:
    """Fed the records of a conversation. The first model is let through as it speaks, and what the second says
    meanwhile when that one is done: `:1` and `:2` are votes for what a person saw first and second."""

    def __init__(self) -> None:
        self._speaking = 0
        self._held: list[Record] = []

    def feed(self, record: Record) -> list[Record]:
        """What to show now, in this order."""
        event = record.event
        if isinstance(event, StageFinished | StageFailed | StageCancelled):
            held, self._held, self._speaking = self._held, [], 0
            return [*held, record]
        if not isinstance(event, TokenGenerated | GenerationFinished):
            return [record]
        if event.side > self._speaking:
            self._held.append(record)
            return []
        if isinstance(event, TokenGenerated):
            return [record]
        held, self._held, self._speaking = self._held, [], event.side + 1
        return [record, *(shown for other in held for shown in self.feed(other))]
