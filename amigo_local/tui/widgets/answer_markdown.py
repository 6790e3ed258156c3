"""AnswerMarkdown: Textual's Markdown made safe for what a model writes: nothing is hidden, followed or taken for markup."""

from __future__ import annotations

from typing import ClassVar

from markdown_it import MarkdownIt
from markdown_it.rules_core import StateCore
from markdown_it.token import Token
from rich import box
from rich.table import Table
from rich.text import Text
from textual.app import ComposeResult
from textual.content import Content
from textual.widgets import Markdown, Static
from textual.widgets.markdown import MarkdownBlock, MarkdownFence

from amigo_local.domain.code_start import begins_like_python

_TABLE_STYLES = {".strong": "bold", ".em": "italic", ".s": "strike", ".code_inline": "bold"}


def answer_parser() -> MarkdownIt:
    """HTML stays text, and of links and images one sees where they lead."""
    parser = MarkdownIt("gfm-like", {"html": False, "linkify": False})
    parser.core.ruler.push("plain_links", _plain_links)
    return parser


def _plain_links(state: StateCore) -> None:
    for token in state.tokens:
        if token.children:
            token.children = _without_links(token.children)


def _without_links(children: list[Token]) -> list[Token]:
    kept: list[Token] = []
    target, shown = "", ""
    for child in children:
        if child.type == "link_open":
            target, shown = str(child.attrs.get("href", "")), ""
        elif child.type == "link_close":
            if target and target != shown:
                kept.append(_text(f" ({target})"))
        elif child.type == "image":
            kept.append(_text(f"[{child.content or 'image'}] ({child.attrs.get('src', '')})"))
        else:
            shown += child.content
            kept.append(child)
    return kept


def _text(content: str) -> Token:
    return Token("text", "", 0, content=content)


class AnswerFence(MarkdownFence):
    """Code; a block whose language isn't told is Python where it begins like it, and never guessed at length."""

    @classmethod
    def highlight(cls, code: str, language: str, ansi: bool = False, dark: bool = False) -> Content:
        name = language.split(maxsplit=1)[0].strip("{}.").lower() if language.strip() else ""
        if not name:
            name = "python" if any(begins_like_python(line) for line in code[:2000].splitlines()) else "text"
        return super().highlight(code, name, ansi, dark)


class AnswerTable(MarkdownBlock):
    """A table as one widget, drawn anew as rows come: Textual's has one for each cell, and reads their tips as markup."""

    DEFAULT_CSS = """
    AnswerTable { margin-bottom: 1; }
    """

    def compose(self) -> ComposeResult:
        yield Static(self._table())
        self._blocks.clear()

    def _table(self) -> Table:
        rows = [_cells(row) for row in _rows(self)]
        width = max((len(row) for row in rows), default=0)
        table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
        for cell in [*rows[0], *[Text()] * (width - len(rows[0]))] if rows else []:
            table.add_column(cell, overflow="fold")
        for row in rows[1:]:
            table.add_row(*row)
        return table


def _rows(block: MarkdownBlock) -> list[MarkdownBlock]:
    found: list[MarkdownBlock] = []
    for child in block._blocks:
        found += [child] if child.name == "tr_open" else _rows(child)
    return found


def _cells(row: MarkdownBlock) -> list[Text]:
    return [_rich_text(cell._content) for cell in row._blocks]


def _rich_text(content: Content) -> Text:
    text = Text(content.plain)
    for start, end, style in content.spans:
        if isinstance(style, str) and style in _TABLE_STYLES:
            text.stylize(_TABLE_STYLES[style], start, end)
    return text


class AnswerMarkdown(Markdown):
    """One part of an answer."""

    DEFAULT_CSS = """
    AnswerMarkdown {
        padding: 0 1;
        MarkdownFence { margin: 0 0 1 0; scrollbar-size-horizontal: 0; background: $panel 50%; color: $foreground; }
        MarkdownFence > Label { padding: 0 1; }
        MarkdownH1, MarkdownH2, MarkdownH3, MarkdownH4, MarkdownH5, MarkdownH6 {
            content-align: left middle; text-style: bold; margin: 0 0 1 0; width: 1fr;
        }
        &.goes-on > MarkdownFence:last-child { margin-bottom: 0; }
    }
    """
    BLOCKS: ClassVar[dict[str, type[MarkdownBlock]]] = {
        **Markdown.BLOCKS,
        "fence": AnswerFence,
        "code_block": AnswerFence,
        "table_open": AnswerTable,
    }

    def __init__(self, text: str) -> None:
        super().__init__(text, parser_factory=answer_parser, open_links=False)
