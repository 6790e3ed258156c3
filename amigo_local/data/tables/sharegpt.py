"""Mapping `sharegpt`: conversations about code; the first request and its answer make the pair."""

from __future__ import annotations

import re
from collections.abc import Iterator

from amigo_local.data.answer_blocks import answer_blocks
from amigo_local.data.pair import Pair
from amigo_local.data.syntax import language_name
from amigo_local.data.tables.mapping import RowMapping
from amigo_local.data.tables.rows import Row
from amigo_local.domain.data_source import RowsSource

NO_TURNS, NO_EXCHANGE, NOT_CODE = "no list of turns", "no request that is answered", "not about code"
_USER = frozenset({"human", "user", "prompter"})
_ASSISTANT = frozenset({"gpt", "assistant", "model", "chatgpt", "bot", "bing"})
# Words that hardly stand in a request which isn't about code. "function" and "algorithm" do: in mathematics.
_CODE_WORDS = re.compile(
    r"\b(?:python|javascript|typescript|java|kotlin|golang|rust|ruby|php|perl|matlab|bash|powershell|sql|html|css|regex"
    r"|numpy|pandas|django|flask|react|node\.?js|docker|api|json|xml|code|coding|codebase|program|programs|programming"
    r"|scripts?|debug|debugging|compile|compiler|refactor|stdin|stdout|leetcode|codeforces|subroutine|pseudocode"
    r"|linked list|binary tree|unit tests?)\b|\bc\+\+|\bc#|\bdef \w+\(|\btime complexity\b|```",
    re.IGNORECASE,
)
_KNOWN = frozenset(
    {"python", "javascript", "typescript", "java", "kotlin", "go", "rust", "ruby", "php", "perl", "bash", "c", "cpp"}
    | {"csharp", "sql", "html", "css", "r", "swift", "scala"}
)


class Sharegpt(RowMapping):
    columns = (("conversations", "messages", "conversation"),)
    optional = ("id", "source")
    used = "the first request of conversations → request, what follows it → answer (about code only)"

    def __init__(self, source: RowsSource, label: str, license: str) -> None:
        super().__init__(source, label, license)
        self._system_turns = 0

    def pair(self, row: Row, name: str) -> Pair | str:
        turns = next((value for key in self.columns[0] if isinstance(value := row.get(key), list)), None)
        if turns is None:
            return NO_TURNS
        exchange = self._exchange(turns)
        if exchange is None:
            return NO_EXCHANGE
        prompt, completion = exchange
        blocks = answer_blocks(completion)
        if not blocks and not _CODE_WORDS.search(prompt):
            return NOT_CODE
        module = row.get("module")
        return Pair(
            prompt=prompt,
            completion=completion,
            source=self.label,
            module=module if isinstance(module, str) else "",
            name=name,
            license=self.license_of(row),
            language=self.language_of(row)
            or next((n for b in blocks if (n := language_name(b.language)) in _KNOWN), ""),
        )

    def _exchange(self, turns: list[object]) -> tuple[str, str] | None:
        """The first request and what answers it; what the system said before is left out, and counted."""
        request = ""
        for turn in turns:
            if not isinstance(turn, dict):
                return None
            speaker, text = turn.get("from", turn.get("role")), turn.get("value", turn.get("content"))
            if not isinstance(speaker, str) or not isinstance(text, str):
                return None
            if speaker == "system":
                self._system_turns += 1
            elif speaker in _USER and not request:
                request = text.strip()
            elif request:
                return (request, text.strip()) if speaker in _ASSISTANT and text.strip() else None
            else:
                return None  # begins with an answer
        return None

    def remarks(self) -> Iterator[str]:
        if self._system_turns:
            yield f"{self.label}: {self._system_turns:,} system turns were left out of conversations"


MAPPING = Sharegpt
