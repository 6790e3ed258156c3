"""AnswerBlock: the fenced pieces of code in an answer, found line by line as CommonMark does."""

from __future__ import annotations

import re
from typing import NamedTuple

# CommonMark 0.31, section 4.5: up to three spaces, three or more backticks, an info string without backticks.
_OPENING = re.compile(r" {0,3}(`{3,})[ \t]*([^`\n]*)")


class AnswerBlock(NamedTuple):
    start: int
    """Character at which its opening fence's line begins."""
    end: int
    """Character after its closing fence; the text's length where it was never closed."""
    code: str
    """What is between the fences, without its last newline."""
    language: str
    """First word of the info string, in lower case."""
    is_closed: bool


def answer_blocks(text: str) -> tuple[AnswerBlock, ...]:
    """Every block in order. A fence that is never closed makes a block up to the end."""
    blocks: list[AnswerBlock] = []
    fence, language, start, code_from = "", "", 0, 0
    at = 0
    for line in text.splitlines(keepends=True):
        stripped = line.rstrip("\r\n")
        if fence:
            tail = stripped.strip()
            if len(tail) >= len(fence) and not tail.strip("`"):
                blocks.append(AnswerBlock(start, at + len(stripped), text[code_from:at].rstrip("\n"), language, True))
                fence = ""
        elif opening := _OPENING.fullmatch(stripped):
            fence, language = opening[1], opening[2].strip().partition(" ")[0].lower()
            start, code_from = at, at + len(line)
        at += len(line)
    if fence:
        blocks.append(AnswerBlock(start, len(text), text[code_from:].rstrip("\n"), language, False))
    return tuple(blocks)


def prose_around(text: str, blocks: tuple[AnswerBlock, ...]) -> tuple[str, ...]:
    """What is written before, between and after the blocks: one text more than there are blocks."""
    edges = [0, *(edge for block in blocks for edge in (block.start, block.end)), len(text)]
    return tuple(text[edges[n] : edges[n + 1]] for n in range(0, len(edges), 2))


def strip_preamble(text: str) -> str:
    """The one block alone where an answer holds just one, that is closed; else the text as it is."""
    blocks = answer_blocks(text)
    if len(blocks) != 1 or not blocks[0].is_closed or not blocks[0].code.strip():
        return text
    return text[blocks[0].start : blocks[0].end].strip()


def fenced(code: str, language: str = "python") -> str:
    """A block by itself; its fence is longer than any that the code holds."""
    longest = max((len(run) for run in re.findall(r"`{3,}", code)), default=2)
    fence = "`" * (longest + 1)
    return f"{fence}{language}\n{code.strip(chr(10))}\n{fence}"
