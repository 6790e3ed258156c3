from __future__ import annotations

from amigo_local.domain.events import (
    AnyEvent,
    GenerationFinished,
    Note,
    Record,
    StageFailed,
    StageFinished,
    TokenGenerated,
)
from amigo_local.presentation.in_turn import InTurn


def token(side: int, text: str) -> TokenGenerated:
    return TokenGenerated(side, 0, text)


def end(side: int) -> GenerationFinished:
    return GenerationFinished(side, 0, "m", 1, 1, 0.0, 0.0, 0.0, "stop")


def order(*events: AnyEvent) -> list[list[AnyEvent]]:
    turn = InTurn()
    return [[r.event for r in turn.feed(Record("run", n, 0.0, "chat", e))] for n, e in enumerate(events)]


DONE = StageFinished(None, 1.0, 1)


def test_the_first_model_is_shown_as_it_speaks_and_the_second_when_it_is_done() -> None:
    b1, a1, note, b2, a2, end_b = token(1, "b"), token(0, "a"), Note("n"), token(1, "B"), token(0, "A"), end(1)
    assert order(b1, a1, note, b2, a2, end_b, end(0), DONE) == [
        *([], [a1], [note], [], [a2], []),
        [end(0), b1, b2, end_b],
        [DONE],
    ]
    assert order(a1, end(0), b1, end_b, DONE, a2) == [[a1], [end(0)], [b1], [end_b], [DONE], [a2]]


def test_nothing_is_lost_when_the_first_model_fails() -> None:
    failed = StageFailed("m", "", 1)
    assert order(token(1, "b"), token(0, "a"), end(1), failed, token(0, "next")) == [
        *([], [token(0, "a")], []),
        [token(1, "b"), end(1), failed],
        [token(0, "next")],
    ]
