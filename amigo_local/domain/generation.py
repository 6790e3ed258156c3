"""Chat messages, sampling options and answers: what every chat backend takes and gives."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, Protocol

import msgspec

from amigo_local.domain.code_start import find_code


class Message(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    role: Literal["system", "user", "assistant"]
    content: str


class GenerationOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Sent whole and explicitly to both sides: servers' defaults differ between versions."""

    temperature: float = 0.0
    top_k: int = 40
    top_p: float = 0.95
    min_p: float = 0.0
    repeat_penalty: float = 1.0
    seed: int = 0
    max_tokens: int = 512
    context_length: int = 4096


class Answer(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One finished answer; seconds are wall time, load apart from prompt and decode."""

    text: str
    prompt_tokens: int
    answer_tokens: int
    load_seconds: float
    prompt_seconds: float
    answer_seconds: float
    stop_reason: str
    tokens_before_code: int | None = None
    """Tokens generated before the first code began; None when that was not measured or no code came."""
    first_token_seconds: float | None = None
    """From the question to the first piece of text, without loading; None when nothing was said."""

    @property
    def tokens_said_before_code(self) -> int | None:
        """0: the code comes at once; None: no code came. Where no tokens were counted, their share by characters."""
        start = find_code(self.text)
        if start.found_at is None or start.at_once:
            return None if start.found_at is None else 0
        if self.tokens_before_code is not None:
            return self.tokens_before_code
        return round(self.answer_tokens * start.found_at / len(self.text))


class ChatBackend(Protocol):
    """A place where models talk: an Ollama server or the embedded llama.cpp."""

    name: str
    """Shown in reports: `Ollama 0.9.3 at http://…` or `embedded llama.cpp`."""

    def generate(
        self,
        model: str,
        messages: tuple[Message, ...],
        options: GenerationOptions,
        on_text: Callable[[str], None],
    ) -> Answer:
        """Streams each piece to on_text (which may raise Cancelled) and returns the answer."""

    def unload(self, model: str) -> None:
        """Frees the memory that the model holds; nothing happens when it isn't loaded."""
