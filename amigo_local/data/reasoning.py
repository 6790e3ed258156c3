"""Reasoning: tells the chain of thought before an answer from the answer, tagged or in plain prose."""

from __future__ import annotations

import re
from typing import NamedTuple

from amigo_local.data.answer_blocks import answer_blocks, strip_preamble
from amigo_local.data.reasoning_prose import prose_chain_end

__all__ = ["split_reasoning", "strip_preamble", "without_reasoning"]


class _Tags(NamedTuple):
    """How a family of models marks its thought; `wrapping` are tags around the answer that may go."""

    opening: re.Pattern[str]
    closing: re.Pattern[str]
    wrapping: re.Pattern[str]


def _tags(opening: str, closing: str, wrapping: str) -> _Tags:
    return _Tags(*(re.compile(pattern, re.IGNORECASE) for pattern in (opening, closing, wrapping)))


# DeepSeek-R1, QwQ, Qwen3: <think>; Claude's prompts: <thinking>; Reflection: <reasoning>; their answers may be in
# <answer> or <output>. Open-Thoughts and Sky-T1: <|begin_of_thought|>. CRUXEval's and Code Llama's prompts: [THOUGHT].
_FAMILIES = (
    _tags(
        r"<(think|thinking|thought|thoughts|reasoning)>",
        r"</(think|thinking|thought|thoughts|reasoning)>",
        r"</?(answer|output|solution|response)>",
    ),
    _tags(
        r"<\|begin_of_thought\|>",
        r"<\|end_of_thought\|>|(?=<\|begin_of_solution\|>)",
        r"<\|(begin|end)_of_solution\|>",
    ),
    _tags(
        r"\[(THOUGHT|THOUGHTS|THINK|REASONING)\]",
        r"\[/(THOUGHT|THOUGHTS|THINK|REASONING)\]|(?=\[(ANSWER|SOLUTION|CODE|PYTHON)\])",
        r"\[/?(ANSWER|SOLUTION|CODE|PYTHON)\]",
    ),
)


def split_reasoning(text: str) -> tuple[str, str]:
    """(chain, answer); the chain is empty when there is none.

    A tag counts only where it stands by itself, outside the answer's code: a program about tags keeps them. A thought
    that never ends leaves no answer, unless the text ends with a whole block of code. Prose is a chain only with the
    evidence that data/reasoning_prose.py asks for.
    """
    for family in _FAMILIES:
        found = _tagged(text, family)
        if found is not None:
            return found
    end = prose_chain_end(text)
    if end is None:
        return "", text
    chain_end, answer_start = end
    return text[:chain_end].strip(), text[answer_start:].strip()


def without_reasoning(text: str) -> str:
    """The answer alone."""
    return split_reasoning(text)[1]


def _tagged(text: str, family: _Tags) -> tuple[str, str] | None:
    """None when the text has no tag of that family where a tag means something."""
    chains: list[str] = []
    rest = text
    while (opening := _opening(rest, family)) is not None:
        before, inside = rest[: opening.start()].strip(), rest[opening.end() :]
        closing = _closing(inside, family, anywhere=True)
        if closing is None:
            chain, answer = _unfinished(inside)
            chains.append(chain)
            rest = _joined(before, answer)
            break
        chains.append(inside[: closing.start()].strip())
        rest = _joined(before, inside[closing.end() :])
    else:
        if not chains:  # the template put the opening tag into the prompt
            closing = _closing(rest, family, anywhere=False)
            if closing is None:
                return None
            chains.append(rest[: closing.start()].strip())
            rest = rest[closing.end() :]
    return "\n\n".join(chain for chain in chains if chain), _unwrapped(rest.strip(), family)


def _opening(text: str, family: _Tags) -> re.Match[str] | None:
    """The first opening tag that begins a line before any code."""
    blocks = answer_blocks(text)
    prose = text[: blocks[0].start] if blocks else text
    for found in family.opening.finditer(prose):
        if not prose[: found.start()].rpartition("\n")[2].strip():
            return found
    return None


def _closing(text: str, family: _Tags, *, anywhere: bool) -> re.Match[str] | None:
    """The first closing tag that begins or ends a line; `anywhere` also takes any other when none does.

    Without an opening tag it must also stand outside the code: a fence that is open before it may be the answer's.
    """
    first = None
    blocks = () if anywhere else answer_blocks(text)
    for found in family.closing.finditer(text):
        if any(block.start <= found.start() < block.end for block in blocks):
            continue
        first = first or found
        begins = not text[: found.start()].rpartition("\n")[2].strip()
        ends = not text[found.end() :].partition("\n")[0].strip()
        if begins or ends:
            return found
    return first if anywhere else None


def _unfinished(inside: str) -> tuple[str, str]:
    blocks = answer_blocks(inside)
    if blocks and blocks[-1].is_closed and not inside[blocks[-1].end :].strip():
        return inside[: blocks[-1].start].strip(), inside[blocks[-1].start :].strip()
    return inside.strip(), ""


def _joined(before: str, after: str) -> str:
    return f"{before}\n\n{after.lstrip()}" if before else after


def _unwrapped(answer: str, family: _Tags) -> str:
    """Without tags that stand around the whole answer."""
    first = family.wrapping.match(answer)
    if first:
        answer = answer[first.end() :].strip()
    for last in family.wrapping.finditer(answer):
        if last.end() == len(answer) and not answer[: last.start()].count("```") % 2:
            return answer[: last.start()].strip()
    return answer
