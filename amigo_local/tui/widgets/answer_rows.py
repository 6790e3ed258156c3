"""AnswerRows: the answers of an evaluation; `s` sorts, because `o` is the screen's."""

from __future__ import annotations

from typing import ClassVar

from textual.binding import Binding, BindingType

from amigo_local.tui.widgets.table_view import TableView


class AnswerRows(TableView, inherit_bindings=False):
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("slash", "filter", "Filter", key_display="/"),
        Binding("s", "sort_next", "Sort", show=False),
        Binding("S", "reverse", "Reverse", show=False),
    ]

    def __init__(self) -> None:
        super().__init__("id", empty="no answer of this kind")
