"""Types into the app on a pseudo-terminal and times how soon each key is answered."""

from __future__ import annotations

import contextlib
import itertools
import time
from collections.abc import Iterator

from tests.support.pty_program import PtyProgram

LOOP_SCREEN, OTHER_SCREEN = ("1", "palette"), ("4", "palette")
"""Key, and what is drawn again only with the whole screen: the right end of the footer."""
# Greek, Cyrillic, Armenian: no screen has them, so one that comes back was typed just now.
_ALPHABETS = ((0x3B1, 0x3C9), (0x430, 0x44F), (0x561, 0x586))
_LETTERS = [chr(code) for first, last in _ALPHABETS for code in range(first, last)]
_COMPARE_SCREEN = ("5", "sk both models")  # without the letter under the cursor
_PALETTE, _ESCAPE = "\x10", "\x1b"
_TO_THE_START = "\x15"  # ctrl+u deletes up to there
_BETWEEN_SECONDS = 0.03


def palette_letters(app: PtyProgram) -> Iterator[float]:
    """Seconds from a letter to its echo in the palette, which lies over the Loop screen."""
    _until_answered(app, _PALETTE, "Search for commands")
    _until_answered(app, "ѣ", "ѣ")  # before it has the focus, letters go elsewhere
    yield from _echoes(app)


def prompt_letters(app: PtyProgram) -> Iterator[float]:
    """Seconds from a letter to its echo in the prompt of the Compare screen."""
    _answer(app, *_COMPARE_SCREEN)
    time.sleep(0.5)  # it looks whether there are models, and has the focus accordingly
    _answer(app, "\r", "Send")  # enter goes into the prompt
    _until_answered(app, "ѣ", "ѣ")
    yield from _echoes(app)


def _echoes(app: PtyProgram) -> Iterator[float]:
    for letter in itertools.cycle(_LETTERS):
        if letter == _LETTERS[0]:
            app.write(_TO_THE_START)
            time.sleep(0.1)  # Textual does what is bound to a key after it has typed the letter that came with it
            _until_answered(app, "ѫ", "ѫ")
        yield _answer(app, letter, letter)
        time.sleep(_BETWEEN_SECONDS)


def screens(app: PtyProgram) -> Iterator[float]:
    """Seconds from a digit to the other screen; of there and back the longer."""
    while True:
        there = _answer(app, *OTHER_SCREEN)
        time.sleep(_BETWEEN_SECONDS)
        back = _answer(app, *LOOP_SCREEN)
        time.sleep(_BETWEEN_SECONDS)
        yield max(there, back)


def first_visits(app: PtyProgram) -> list[float]:
    """Seconds from a digit to its screen, which is made for it; of all but the Loop screen, which shows."""
    taken = []
    for digit in "2345678":
        taken.append(_answer(app, digit, LOOP_SCREEN[1]))
        time.sleep(0.5)  # it asks for what it is to show
    return taken


def back_to_the_loop(app: PtyProgram) -> None:
    """From the palette or the prompt, which is left empty."""
    app.write(_TO_THE_START)
    time.sleep(0.1)
    app.write(_ESCAPE)
    time.sleep(0.3)  # a terminal's escape key and the start of a sequence are told apart by time
    _until_answered(app, *OTHER_SCREEN)
    _until_answered(app, *LOOP_SCREEN)


def timed(source: Iterator[float], seconds: float) -> list[float]:
    """What it yields for so long, after its first, which is preceded by getting there."""
    next(source)
    deadline = time.perf_counter() + seconds
    return list(itertools.takewhile(lambda _: time.perf_counter() < deadline, source))


def _answer(app: PtyProgram, key: str, marker: str) -> float:
    after = app.mark()
    written = app.write(key)
    return app.wait_for(marker, after) - written


def _until_answered(app: PtyProgram, key: str, marker: str) -> None:
    """Again where it came too early to be heard."""
    after = app.mark()
    for _ in range(60):
        app.write(key)
        with contextlib.suppress(AssertionError):
            app.wait_for(marker, after, seconds=0.3)
            return
    raise AssertionError(f"{key!r} is not answered by {marker!r}")
