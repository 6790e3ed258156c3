"""AnswerCutting: cuts an answer, as it streams, into parts of which only the last one is ever drawn again."""

from __future__ import annotations

import re
from dataclasses import dataclass

PART_CHARACTERS = 1500
"""A part of so many ends at the next place that suits: parsing and highlighting it takes about 5 ms."""
LONGEST_PART = 4 * PART_CHARACTERS
"""Where none comes, it is cut anywhere."""
_LINE_KEPT = 200
"""Characters of a line that tell what it is."""

_FENCE = re.compile(r"[ \t]*(?:[-*+][ \t]+|\d{1,9}[.)][ \t]+)?(`{3,}|~{3,})(.*)")


@dataclass(frozen=True)
class PartText:
    """Text that comes next."""

    text: str
    opens: bool = False
    """Another part begins with it."""
    joined: bool = False
    """That part stands right under the last one, with no empty line between them."""


class AnswerCutting:
    """Fed pieces of Markdown with `\\n` as its only line end; returns what is to be drawn.

    A part that begins within fenced code opens that fence anew, so each one is Markdown by itself.
    """

    def __init__(self) -> None:
        self._line = ""
        """The line that isn't whole, as far as it was given out."""
        self._held = ""
        """The beginning of a line within a fence that may turn out to close it."""
        self._size = 0
        self._blank = False
        """Whether the last whole line was."""
        self._marker = ""
        """Of the fence that is open."""
        self._info = ""
        self._continued = False
        """Whether an earlier part opened it."""
        self._begun = False

    def feed(self, text: str) -> list[PartText]:
        given: list[PartText] = []
        while text:
            line, newline, text = text.partition("\n")
            self._feed_line(line + newline, given)
        return given

    def finish(self) -> list[PartText]:
        """What was held back."""
        given: list[PartText] = []
        held, self._held = self._held, ""
        self._give(held, given)
        return given

    def _feed_line(self, chunk: str, given: list[PartText]) -> None:
        """A line, or the next piece of one."""
        chunk, self._held = self._held + chunk, ""
        if self._marker and not self._line and self._may_close(chunk):
            if not chunk.endswith("\n"):
                self._held = chunk
                return
            if self._closes(chunk):
                self._give(f"{self._marker}\n" if self._continued else chunk, given)
                self._marker, self._continued, self._blank = "", False, False
                return
        for start in range(0, len(chunk), LONGEST_PART):
            self._give(chunk[start : start + LONGEST_PART], given)
        if len(self._line) < _LINE_KEPT:
            self._line += chunk
        if chunk.endswith("\n"):
            self._end_line()

    def _end_line(self) -> None:
        line, self._line = self._line.removesuffix("\n"), ""
        self._blank = not line.strip()
        if not self._marker and (match := _FENCE.fullmatch(line)) and "`" not in match[2]:
            self._marker, self._info, self._continued = match[1], match[2].strip(), False

    def _give(self, text: str, given: list[PartText]) -> None:
        if not text:
            return
        opens = not self._begun or self._should_cut(text)
        joined = opens and (bool(self._marker) or not self._blank)
        if opens and self._marker:
            self._continued = True
            text = f"{self._marker}{self._info}\n{text}"
        self._size = len(text) + (0 if opens else self._size)
        self._begun = True
        given.append(PartText(text, opens, joined))

    def _should_cut(self, text: str) -> bool:
        if self._size + len(text) > LONGEST_PART:
            return True
        if self._size < PART_CHARACTERS or self._line:
            return False
        # Indented text after an empty line belongs to the list above it.
        return bool(self._marker) or (self._blank and not text[0].isspace())

    def _may_close(self, line: str) -> bool:
        return not line.strip().strip(self._marker[0])

    def _closes(self, line: str) -> bool:
        return len(line.strip()) >= len(self._marker)
