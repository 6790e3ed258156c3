"""Prose chains: thinking aloud that is marked by no tag, told from explanations and preambles by its evidence."""

from __future__ import annotations

import re

from amigo_local.data.answer_blocks import AnswerBlock, answer_blocks, prose_around
from amigo_local.domain.code_start import find_code

LEAST_WORDS = 15
"""A shorter text before code is a preamble, whatever it says."""
LEAST_KINDS = 3
LEAST_HITS = 4
"""Without a change of mind, so many kinds of marker and so many markers make prose a chain."""
LEAST_HITS_WITH_CORRECTION = 3
"""With one ("wait, that's wrong"), two kinds do: explanations that are written afterwards don't correct themselves."""

_HEADING = r"^[ \t]*(?:#{1,6}[ \t]*|\*\*[ \t]*)(?:\d+[.)][ \t]*)?"
_HEADING_END = r"[ \t]*:?[ \t]*(?:\*\*)?[ \t]*:?[ \t]*$"
_THOUGHT_HEADING = re.compile(
    rf"{_HEADING}(?:(?:my |step.by.step |chain.of.)?(?:reasoning|thoughts?|thinking)(?: process| steps)?)"
    rf"{_HEADING_END}|^[ \t]*(?:reasoning|thought process|thinking|chain of thought)[ \t]*:[ \t]*$",
    re.IGNORECASE | re.MULTILINE,
)
_ANSWER_HEADING = re.compile(
    rf"{_HEADING}(?:the )?(?:final |complete |full |python |my )*"
    rf"(?:solution|answer|code|implementation|program|result)(?: code| in python)?{_HEADING_END}"
    r"|^[ \t]*(?:final (?:answer|solution|code)|solution|answer)[ \t]*:[ \t]*$",
    re.IGNORECASE | re.MULTILINE,
)


def _words(*alternatives: str) -> re.Pattern[str]:
    return re.compile(rf"(?<![\w'])(?:{'|'.join(alternatives)})(?![\w'])", re.IGNORECASE)


CORRECTION = "changes its mind"
MARKERS: dict[str, re.Pattern[str]] = {
    "thinks aloud": _words(
        r"let me (?:think|see|start|try|work|break|recall|consider|look|figure|write|trace|go)",
        r"let's (?:think|see|try|consider|break|work|say|start|trace|figure)",
        r"i (?:need|have|want|should|could|can|think|guess|remember|recall|wonder|believe|might|must)\b(?! know)",
        r"i'll (?:need|have|try|start|think|use|go)",
        r"i'm (?:thinking|going|not sure|asked|supposed)",
        r"we (?:need|should|could|have) to",
        r"the (?:user|question|problem|task) (?:wants|asks|is asking|says|needs|requires)",
    ),
    "opens as talk": re.compile(
        r"(?:\A|\n[ \t]*\n|(?<=[.!?] ))[ \t]*(?:okay|ok|alright|all right|hmm+|so|right|well|now|first)\b,?[ \t]*"
        r"(?=(?:so|i|we|let|let's|the (?:user|problem|question|task)|how|what|to solve|this|first)\b)"
        r"|\A\s*(?:okay|ok|alright|all right|hmm+)\b[,.]",
        re.IGNORECASE,
    ),
    CORRECTION: re.compile(
        r"(?:\A|\n|(?<=[.!?,;:] )|(?<=[—–-] ))[ \t]*(?:but |oh,? |hmm,? |no,? )?"
        r"(?:wait\b(?! for| until)|hold on\b|hmm+\b|actually,|no, (?:that|it|this|because|wait)|on second thought"
        r"|scratch that|oops)|\bthat(?:'s| is| was|) (?:not (?:right|quite|correct)|wrong|won't work|doesn't work)"
        r"|\blet me (?:reconsider|rethink|double.check|re-?read|re-?check|correct|fix that|start over|verify|revise)",
        re.IGNORECASE,
    ),
    "weighs": _words(
        "alternatively", "maybe", "perhaps", "another (?:way|approach|option|idea|thought)",
        "(?:should|could) (?:i|we)", "not sure", "it depends", "that (?:would|should|might) work",
        "better to", "i guess",
    ),
    "tries cases": _words(
        r"what (?:if|about)", r"edge cases?", r"for (?:example|instance), (?:if|when|with|given|the|for|input)",
        r"suppose", r"consider (?:the|an?|when|what)", r"in (?:that|this|the) case", r"let's test", r"if the input is",
        r"to be sure", r"make sure",
    ),
    "asks itself": re.compile(
        r"\b(?:how|what|which|where|why|is|does|do|should|can|could|would)\b[^.?!\n]{3,120}\?(?=\s|$)", re.IGNORECASE
    ),
    "has a heading for it": re.compile(
        rf"{_HEADING}(?:approach|analysis|plan|strategy|thought process|reasoning|thinking"
        rf"|understanding(?: the problem)?|problem analysis|step.by.step(?: plan| reasoning)?){_HEADING_END}",
        re.IGNORECASE | re.MULTILINE,
    ),
    "concludes": _words(
        r"so,? (?:the|i|we|it|that|this|in|for|if|an?)", "therefore", "that means", "which means", "this way",
        "putting it", "that makes sense", "that seems", "looks (?:good|right)",
    ),
}  # fmt: skip
"""Kinds of marker of deliberation."""

_DEFINED = re.compile(r"^[ \t]*(?:async[ \t]+)?(?:def|class|function|func|fn)[ \t]+(\w+)", re.MULTILINE)
_INLINE_CODE = re.compile(r"`[^`\n]*`")


def deliberation(prose: str) -> dict[str, int]:
    """Kind of marker -> how often it occurs; code in backquotes says nothing."""
    prose = _INLINE_CODE.sub("`…`", prose)
    found = {kind: sum(1 for _ in pattern.finditer(prose)) for kind, pattern in MARKERS.items()}
    return {kind: count for kind, count in found.items() if count}


def is_deliberation(prose: str) -> bool:
    if len(prose.split()) < LEAST_WORDS:
        return False
    found = deliberation(prose)
    hits = sum(found.values())
    if CORRECTION in found and len(found) >= 2 and hits >= LEAST_HITS_WITH_CORRECTION:
        return True
    return len(found) >= LEAST_KINDS and hits >= LEAST_HITS


def prose_chain_end(text: str) -> tuple[int, int] | None:
    """(end of the chain, start of the answer) in characters; None when no chain stands before the text's code."""
    blocks = answer_blocks(text)
    headed = _between_headings(text, blocks)
    if headed is not None:
        return headed
    if not blocks:
        start = find_code(text).found_at
        return (start, start) if start and is_deliberation(text[:start]) else None
    prose = prose_around(text, blocks)
    first = _answer_block(blocks, prose)
    if not is_deliberation("\n\n".join(prose[: first + 1])):
        return None
    return blocks[first].start, blocks[first].start


def _answer_block(blocks: tuple[AnswerBlock, ...], prose: tuple[str, ...]) -> int:
    """Index of the block that the answer begins with. Blocks before a change of mind are drafts when what follows
    defines the same again; all others belong to the answer."""
    for index in range(len(blocks) - 1, 0, -1):
        if CORRECTION not in deliberation(prose[index]):
            continue
        before = {name for block in blocks[:index] for name in _DEFINED.findall(block.code)}
        after = {name for block in blocks[index:] for name in _DEFINED.findall(block.code)}
        if before and before <= after:
            return index
    return 0


def _between_headings(text: str, blocks: tuple[AnswerBlock, ...]) -> tuple[int, int] | None:
    """A heading for the thought at the beginning, and a later one for the answer, that code follows."""
    opening = _THOUGHT_HEADING.search(text)
    if opening is None or len(text[: opening.start()].split()) > LEAST_WORDS:
        return None
    for found in _ANSWER_HEADING.finditer(text, opening.end()):
        inside = any(block.start <= found.start() < block.end for block in blocks)
        if not inside and find_code(text[found.end() :]).found_at is not None:
            return found.start(), found.end()
    return None
