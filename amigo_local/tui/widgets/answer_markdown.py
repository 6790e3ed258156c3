"""AnswerMarkdown: Markdown as lines of a given width, with nothing hidden and nothing to be followed."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal

from markdown_it import MarkdownIt
from markdown_it.token import Token
from textual.content import Content
from textual.highlight import highlight

from amigo_local.domain.code_start import begins_like_python
from amigo_local.tui.widgets.answer_table import table_lines
from amigo_local.tui.widgets.ink import MUTED

TAB_SIZE = 4
NARROWEST = 8
"""Cells that text gets however deep it is nested."""
_QUOTE = "▌ "
_BULLETS = "•-·"
_LOOKED_AT = 2000
"""Characters of a block without a language that tell whether it is Python."""

_STYLES = {"em_open": "italic", "strong_open": "bold", "s_open": "strike"}
_HEADINGS = {"h1": "bold underline $primary", "h2": "bold $primary", "h3": "bold $secondary"}
_CODE_GROUND = "on $panel"


@dataclass
class _Prefix:
    """What stands before the first line of a quote or list item, and before the others."""

    first: str
    rest: str
    used: bool = False

    def take(self) -> str:
        text = self.rest if self.used else self.first
        self.used = True
        return text


@dataclass
class _Block:
    """Something that is set by itself: `first` before its first line and `rest` before the others."""

    kind: Literal["prose", "code", "rule", "table"]
    first: str
    rest: str
    gap: str | None
    """Stands in an empty line above it; None: there is none."""
    content: Content = field(default_factory=Content)
    rows: list[list[Content]] = field(default_factory=list)

    def lines(self, width: int) -> Iterator[Content]:
        if self.gap is not None:
            yield Content.styled(self.gap, MUTED)
        room = max(width - len(self.first), NARROWEST)
        for number, line in enumerate(self._set(room)):
            yield Content.assemble((self.rest if number else self.first, MUTED), line)

    def _set(self, room: int) -> list[Content]:
        match self.kind:
            case "prose":
                return self.content.wrap(room)
            case "rule":
                return [Content.styled("─" * room, MUTED)]
            case "table":
                return table_lines(self.rows, room)
            case "code":
                folded = [part for line in self.content.split(allow_blank=True) for part in line.fold(room - 2)]
                return [_on_code_ground(line, room) for line in folded]


def _on_code_ground(line: Content, room: int) -> Content:
    return line.pad_left(1).pad_right(max(0, room - 1 - line.cell_length)).stylize_before(_CODE_GROUND)


class AnswerMarkdown:
    """Parsed once, set for as many widths as are asked for."""

    def __init__(self, text: str) -> None:
        self._blocks: list[_Block] = []
        self._prefixes: list[_Prefix] = []
        self._gap = False
        self._lists = 0
        tokens = iter(MarkdownIt("gfm-like", {"html": False, "linkify": False}).parse(text))
        for token in tokens:
            self._take(token, tokens)

    def lines(self, width: int) -> list[Content]:
        return [line for block in self._blocks for line in block.lines(width)]

    def _take(self, token: Token, tokens: Iterator[Token]) -> None:
        match token.type:
            case "blockquote_open":
                self._prefixes.append(_Prefix(_QUOTE, _QUOTE))
            case "list_item_open":
                mark = f"{token.info}." if token.info else _BULLETS[min(self._lists, len(_BULLETS)) - 1]
                self._prefixes.append(_Prefix(f"{mark} ", " " * (len(mark) + 1)))
            case "blockquote_close" | "list_item_close":
                if not self._prefixes[-1].used:  # an empty item shows its mark all the same
                    self._add("prose")
                self._prefixes.pop()
            case "bullet_list_open" | "ordered_list_open":
                self._lists += 1
            case "bullet_list_close" | "ordered_list_close":
                self._lists -= 1
                self._gap = self._gap or not self._lists
            case "paragraph_open":
                self._add("prose", inline(next(tokens)), tight=token.hidden)
            case "heading_open":
                style = _HEADINGS.get(token.tag, "bold")
                self._add("prose", inline(next(tokens)).stylize_before(style))
            case "fence" | "code_block":
                self._add("code", highlighted(token.content.removesuffix("\n"), token.info))
            case "hr":
                self._add("rule")
            case "table_open":
                self._add("table", rows=_rows(tokens))
            case _:
                pass  # ends of what was taken whole

    def _add(
        self,
        kind: Literal["prose", "code", "rule", "table"],
        content: Content | None = None,
        rows: list[list[Content]] | None = None,
        tight: bool = False,
    ) -> None:
        gap = "".join(prefix.rest for prefix in self._prefixes if prefix.used) if self._gap else None
        first = "".join(prefix.take() for prefix in self._prefixes)
        rest = "".join(prefix.rest for prefix in self._prefixes)
        self._blocks.append(_Block(kind, first, rest, gap, content or Content(), rows or []))
        self._gap = not tight


def _rows(tokens: Iterator[Token]) -> list[list[Content]]:
    rows: list[list[Content]] = []
    for token in tokens:
        if token.type == "table_close":
            break
        if token.type == "tr_open":
            rows.append([])
        elif token.type == "inline":
            rows[-1].append(inline(token))
    return rows


def inline(token: Token) -> Content:
    """Text with its emphasis. Of links and images one sees where they lead."""
    parts: list[Content | tuple[str, str]] = []
    open_: list[str] = []
    target, shown = "", ""
    for child in token.children or ():
        said = ""
        match child.type:
            case "em_open" | "strong_open" | "s_open":
                open_.append(_STYLES[child.type])
            case "em_close" | "strong_close" | "s_close":
                open_.pop()
            case "link_open":
                target, shown = str(child.attrs.get("href", "")), ""
            case "link_close":
                said = f" ({target})" if target and target != shown else ""
            case "image":
                said = f"[{child.content or 'image'}] ({child.attrs.get('src', '')})"
            case "softbreak" | "hardbreak":
                said = "\n"
            case "code_inline":
                parts.append((child.content, " ".join([*open_, "$text-warning"])))
                shown += child.content
            case _:
                said = child.content
                shown += said
        if said:
            parts.append((said, " ".join(open_)))
    return Content.assemble(*parts)


def highlighted(code: str, info: str) -> Content:
    """A block whose language isn't told is Python where it begins like it; guessing takes Pygments a second."""
    language = info.split(maxsplit=1)[0].strip("{}.").lower() if info.strip() else ""
    if not language:
        language = "python" if any(map(begins_like_python, code[:_LOOKED_AT].splitlines())) else "text"
    return highlight(code.expandtabs(TAB_SIZE), language=language)


def prepare_highlighting() -> None:
    """Has what the first code needs imported before it comes: that takes a tenth of a second."""
    highlighted("import this", "python")
