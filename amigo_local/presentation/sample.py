"""A training sample as lines of text: what is only read, and, set apart by a bar, what is learnt."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from amigo_local.domain.events import SamplePart, SampleShown

if TYPE_CHECKING:
    from rich.text import Text

LEARNT, READ = "┃ ", "  "
SHOWN_CHARACTERS = 4000
"""Of one part; the middle of a longer one is left out."""


def sample_lines(sample: SampleShown) -> Iterator[str]:
    """Plain lines; those of learnt tokens begin with a bar."""
    yield heading(sample)
    for part in sample.parts:
        mark = LEARNT if part.trained else READ
        yield f"{mark}[{caption(part)}]"
        yield from (f"{mark}{line}" for line in shown_text(part).splitlines())


def sample_text(sample: SampleShown) -> Text:
    """The same in colour: learnt tokens green, what is only read dim."""
    from rich.text import Text

    text = Text(f"\n{heading(sample)}\n", style="bold red" if sample.is_too_long else "bold")
    for part in sample.parts:
        mark, style = (LEARNT, "green") if part.trained else (READ, "dim")
        text.append(f"{mark}[{caption(part)}]\n", style=f"italic {style}")
        for line in shown_text(part).splitlines():
            text.append(f"{mark}{line}\n", style=style)
    return text


def heading(sample: SampleShown) -> str:
    """`repo tools: parse_size, 312 tokens`, and what becomes of it when that is too many."""
    count = f"{sample.length_tokens:,} tokens"
    if sample.is_too_long:
        count += f", more than {sample.limit_tokens:,}: left out (data.max_length_tokens)"
    return f"{sample.source}: {sample.name or 'unnamed'}, {count}"


def caption(part: SamplePart) -> str:
    what = part.label or ("learnt" if part.trained else "read")
    return f"{what}, {part.tokens:,} tokens"


def shown_text(part: SamplePart) -> str:
    text = part.text
    if len(text) <= SHOWN_CHARACTERS * 5 // 4:  # a cut that saves a few lines only hides them
        return text
    half = SHOWN_CHARACTERS // 2
    return f"{text[:half]}\n… {len(text) - 2 * half:,} characters …\n{text[-half:]}"
