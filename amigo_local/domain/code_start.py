"""CodeStart: where in an answer, as it streams, the first code begins."""

from __future__ import annotations

import re

FENCE = "```"

_NAME = r"[^\W\d]\w*"
_DOTTED = rf"{_NAME}(?:\.{_NAME})*"
_ALIASED = rf"{_DOTTED}(?:\s+as\s+{_NAME})?"
_LIST = rf"{_ALIASED}(?:\s*,\s*{_ALIASED})*\s*,?"
_REST = r"\s*(?:#.*)?"

# A whole line, without its indentation, must match: `import the module` and `class of functions`
# have one word too many, `def add(a, b) adds numbers` has no colon.
_PYTHON_LINES = tuple(
    re.compile(pattern)
    for pattern in (
        rf"(?:async\s+)?def\s+{_NAME}\s*(?:\[.*\])?\s*\(.*\)\s*(?:->\s*\S.*?)?:.*",  # def on one line
        rf"(?:async\s+)?def\s+{_NAME}\s*(?:\[.*\])?\s*\((?:[^()]*|.*[,(\[{{])",  # def whose parameters go on
        rf"class\s+{_NAME}\s*(?:\[.*\])?\s*(?:\(.*\))?\s*:\s*(?:#.*|pass|\.\.\.|[rR]?\"\"\".*|[rR]?'''.*)?",
        rf"class\s+{_NAME}\s*\([^()]*",  # class whose bases go on
        rf"import\s+{_LIST}{_REST}",
        rf"from\s+(?:\.+|\.*{_DOTTED})\s+import\s+(?:\*|\(.*|{_LIST}(?:\s*\\)?){_REST}",
        rf"@{_DOTTED}(?:\(.*)?{_REST}",
        r"#!\s*/.*",  # shebang
        r"#\s*-\*-\s*coding.*",
        r"if\s+__name__\s*==\s*.*",
    )
)


def begins_like_python(line: str) -> bool:
    """Whether one whole line of an answer can only be the beginning of Python code.

    Only what opens a definition, an import or a script counts. Statements that prose and
    mathematics also write (`x = 5`, `return the value`, `for each item in it:`) don't.
    """
    stripped = line.strip()
    return any(pattern.fullmatch(stripped) for pattern in _PYTHON_LINES)


class CodeStart:
    """Fed the pieces of an answer in order; says where its first code begins.

    Code begins at an opening fence (three backticks, wherever they stand: nobody writes them in
    prose) or at the first non-blank character of an unfenced line that begins like Python. A fence
    is seen at once, an unfenced line at its end; `finish` judges the last one.
    """

    def __init__(self) -> None:
        self.found_at: int | None = None
        """Characters before the first code; None until it is found."""
        self.at_once = False
        """True when nothing but white space stands before the code."""
        self._line = ""
        self._line_at = 0
        self._only_blank = True
        self._piece_ends: list[int] = []
        self._length = 0

    def feed(self, piece: str) -> bool:
        """Takes the next piece (one token, when the caller counts tokens); True once code was found."""
        if self.found_at is not None:
            return True
        self._length += len(piece)
        self._piece_ends.append(self._length)
        self._line += piece
        while self.found_at is None:
            line, newline, rest = self._line.partition("\n")
            if (fence := line.find(FENCE)) >= 0:
                self._found(fence)
            elif newline:
                self._end_line(line)
                self._line, self._line_at = rest, self._line_at + len(line) + 1
            else:
                break
        return self.found_at is not None

    def finish(self) -> int | None:
        """Judges a last line that has no newline, and returns `found_at`."""
        if self.found_at is None:
            self._end_line(self._line)
        return self.found_at

    @property
    def pieces_before_code(self) -> int | None:
        """Pieces fed that ended at or before the first code; None when there is no code."""
        if self.found_at is None:
            return None
        return sum(end <= self.found_at for end in self._piece_ends)

    def _end_line(self, line: str) -> None:
        if begins_like_python(line):
            self._found(len(line) - len(line.lstrip()))
        elif line.strip():
            self._only_blank = False

    def _found(self, column: int) -> None:
        self.found_at = self._line_at + column
        self.at_once = self._only_blank and not self._line[:column].strip()


def find_code(text: str) -> CodeStart:
    """The verdict on a whole answer."""
    start = CodeStart()
    start.feed(text)
    start.finish()
    return start
