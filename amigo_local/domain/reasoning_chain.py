"""ReasoningChain: whether an answer thinks at length before it comes to its code."""

from __future__ import annotations

import re

from amigo_local.domain.code_start import FENCE, find_code

LEAST_WORDS = 40
"""Without tags, so many words before the code are no preamble any more: the longest that a person would call one,
two sentences and a list of what will be imported, has about thirty."""

_NAMES = r"(?:think|thinking|thoughts?|reasoning)"
_OPENING = rf"^[ \t]*(?:<{_NAMES}>|<\|begin_of_thought\|>|\[{_NAMES}\])"
_CLOSING = rf"(?:</{_NAMES}>|<\|end_of_thought\|>|\[/{_NAMES}\])"
_FLAGS = re.IGNORECASE | re.MULTILINE | re.DOTALL
_TAGGED = re.compile(rf"{_OPENING}(.*?)(?:{_CLOSING}|\Z)", _FLAGS)
# At the end of its line: a program about tags has them inside its lines.
_CLOSING_ENDS = re.compile(rf"{_CLOSING}[ \t]*$", _FLAGS)
_TITLE = r"(?:step.by.step |chain.of.|my )?(?:reasoning|thinking|thoughts?)(?: process| steps)?"
_HEADED = re.compile(rf"\s*(?:(?:#{{1,6}}|\*\*)[ \t]*{_TITLE}[ \t:*]*|{_TITLE}[ \t]*:[ \t]*)\n", re.IGNORECASE)


def has_chain(text: str) -> bool:
    """A thought in tags that says anything, also one that never ends or whose opening tag stood in the prompt; one
    under a heading that says so; or more than LEAST_WORDS words before the first code, or in an answer without code."""
    start = find_code(text).found_at
    before = text if start is None else text[:start]
    opened = _TAGGED.search(text)
    if opened and opened.start() <= len(before):
        return bool(opened[1].strip()) or has_chain(_without_tagged(text))
    if any(_is_outside_code(text, closed.start()) for closed in _CLOSING_ENDS.finditer(text)):
        return True
    return bool(_HEADED.match(text)) or len(before.split()) > LEAST_WORDS


def _is_outside_code(text: str, place: int) -> bool:
    return bool(text[:place].strip()) and text.count(FENCE, 0, place) % 2 == 0


def _without_tagged(text: str) -> str:
    """An empty thought, as templates write it to ask for none, is no part of the answer."""
    return _TAGGED.sub("", text, count=1)
