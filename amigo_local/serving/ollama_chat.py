"""OllamaBackend: models that talk through an Ollama server."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable

import httpx
import msgspec
import ollama

from amigo_local.domain.code_start import CodeStart
from amigo_local.domain.errors import AmigoError
from amigo_local.domain.generation import Answer, GenerationOptions, Message
from amigo_local.serving.ollama_connection import ollama_errors
from amigo_local.serving.ollama_server import OllamaServer

# What GenerationOptions leaves out, switched off: servers' defaults differ between versions.
_NEUTRAL = {"typical_p": 1.0, "presence_penalty": 0.0, "frequency_penalty": 0.0, "repeat_last_n": 64}


def sampling_options(options: GenerationOptions) -> dict[str, float | int]:
    """Every option under the name that Ollama gives it."""
    return _NEUTRAL | {
        "temperature": options.temperature,
        "top_k": options.top_k,
        "top_p": options.top_p,
        "min_p": options.min_p,
        "repeat_penalty": options.repeat_penalty,
        "seed": options.seed,
        "num_predict": options.max_tokens,
        "num_ctx": options.context_length,
    }


class OllamaBackend:
    """A ChatBackend. The tag's own system, messages and stops apply; its other parameters don't."""

    def __init__(self, server: OllamaServer) -> None:
        self._server = server
        self.name = f"Ollama {server.version()} at {server.url}"

    def generate(
        self,
        model: str,
        messages: tuple[Message, ...],
        options: GenerationOptions,
        on_text: Callable[[str], None],
    ) -> Answer:
        """Streams an answer. Seconds are the server's own; a chunk is one token, but for those the server holds back
        because they may begin a stop or are part of a character."""
        code = CodeStart()
        pieces: list[str] = []
        final: ollama.ChatResponse | None = None
        asked = time.perf_counter()
        first: float | None = None
        with ollama_errors(self._server.url, f"{model} was answering"):
            chunks = self._server.client.chat(
                model,
                [msgspec.to_builtins(message) for message in messages],
                stream=True,
                options=sampling_options(options),
            )
            try:
                with contextlib.closing(chunks):  # type: ignore[type-var]  # it is a generator
                    for final in chunks:
                        if piece := final.message.content:
                            first = first or time.perf_counter()
                            pieces.append(piece)
                            code.feed(piece)
                            on_text(piece)
            except ollama.ResponseError as error:
                if error.status_code == httpx.codes.NOT_FOUND:
                    raise self._server.unknown(model) from error
                raise AmigoError(
                    f"{model} failed while answering: {error.error}",
                    f"see the server's log; does it load? ollama run {model}",
                ) from error
            if final is None or not final.done:
                raise httpx.RemoteProtocolError("the stream ended before the answer did")
        code.finish()
        load_seconds = (final.load_duration or 0) / 1e9
        return Answer(
            text="".join(pieces),
            prompt_tokens=final.prompt_eval_count or 0,
            answer_tokens=final.eval_count or 0,
            load_seconds=load_seconds,
            prompt_seconds=(final.prompt_eval_duration or 0) / 1e9,
            answer_seconds=(final.eval_duration or 0) / 1e9,
            stop_reason=final.done_reason or "",
            tokens_before_code=code.pieces_before_code,
            first_token_seconds=None if first is None else max(0.0, first - asked - load_seconds),
        )

    def unload(self, model: str) -> None:
        self._server.unload(model)
