"""EmbeddedBackend: models that talk through llama.cpp inside this process, when no server is there."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, ExitStack, nullcontext
from pathlib import Path
from typing import NamedTuple

import msgspec
import psutil

from amigo_local.domain.errors import InputError

try:
    import llama_cpp
except ImportError as error:
    raise InputError(
        f"no Ollama server, and llama.cpp isn't installed: {error}",
        "start `ollama serve`, or pip install 'amigo-local[weights]'",
    ) from error

from amigo_local.domain.generation import Answer, GenerationOptions, Message
from amigo_local.domain.modelfile import Modelfile
from amigo_local.serving.answer_text import AnswerText
from amigo_local.serving.chat_rendering import conversation, render_chat
from amigo_local.serving.library import LibraryEntry
from amigo_local.serving.llama_session import LlamaSession
from amigo_local.serving.templates import choose_template


def loads_on_card() -> bool:
    """Whether this build of llama.cpp puts layers on a graphics card."""
    return bool(llama_cpp.llama_supports_gpu_offload())


class AdaptedModel(msgspec.Struct, frozen=True):
    """A base with an adapter that llama.cpp applies while it runs."""

    gguf: Path
    adapter: Path
    """LoRA as a GGUF, for this very base."""
    definition: Modelfile = Modelfile()
    """The base's, so that the two are asked in the same way."""


class _Loadable(NamedTuple):
    gguf: Path
    adapter: Path | None
    definition: Modelfile


class EmbeddedBackend:
    """A ChatBackend. A model is a name in `adapters`, the path of a GGUF file, or a tag that `find` knows; one is
    loaded at a time.

    The prompt comes from the GGUF's own chat template, else from its family's in `modelfiles/`; a
    definition's system, turns and stops apply as in Ollama, and its other parameters don't.
    """

    def __init__(
        self,
        find: Callable[[str], LibraryEntry],
        *,
        adapters: Mapping[str, AdaptedModel] = {},
        loadable: Callable[[Path], AbstractContextManager[Path]] = nullcontext,
        threads: int | None = None,
        gpu_layers: int | None = None,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        """`loadable`: what stands for a file that llama.cpp refuses as it is, for as long as it is loaded.
        `threads`: None takes the physical cores but one: they wait by spinning, and on a core that is
        busy with something else, every token waits for it. `gpu_layers`: None puts on a graphics card what fits.
        `clock`: seconds; one that stands still while the work is paused keeps speeds true."""
        self.name = f"embedded llama.cpp (llama-cpp-python {llama_cpp.__version__})"
        self._find, self._adapters, self._loadable, self._clock = find, adapters, loadable, clock
        self._files = ExitStack()
        self._threads = threads or max(1, (psutil.cpu_count(logical=False) or os.cpu_count() or 1) - 1)
        self._gpu_layers = gpu_layers
        self._session: LlamaSession | None = None
        self._loaded: tuple[Path, Path | None, int] | None = None
        """GGUF, adapter and asked context length of the session."""
        self._load_seconds = 0.0
        """Spent since the last answer."""

    def load(self, model: str, context_length: int) -> None:
        """Ahead of the question; the next answer tells the seconds. Two backends must not load at the same time: what
        llama.cpp says of a failure goes to one place for the whole process."""
        self._open(self._resolve(model), context_length)

    def generate(
        self,
        model: str,
        messages: tuple[Message, ...],
        options: GenerationOptions,
        on_text: Callable[[str], None],
    ) -> Answer:
        """Streams an answer. Raises InputError when the model can't be loaded or the prompt is too long for it."""
        wanted = self._resolve(model)
        session = self._open(wanted, options.context_length)
        load_seconds, self._load_seconds = self._load_seconds, 0.0
        asked = self._clock()
        first: float | None = None
        prompt, stops = self._prompt(session, wanted.definition, messages)
        if len(prompt) >= session.context_length:
            raise InputError(
                f"the prompt has {len(prompt)} tokens; {model} is loaded with a context of {session.context_length}",
                "shorten the prompt, or raise context_length up to what the model was trained with",
            )
        begun = self._clock()
        session.evaluate(prompt)
        evaluated = self._clock()
        answer, count, reason = AnswerText(stops), 0, "stop"
        for token in session.sample(prompt, options):
            count += 1
            if shown := answer.feed(session.piece(token)):
                first = first or self._clock()
                on_text(shown)
            if answer.stopped:
                break
            if count == options.max_tokens or len(prompt) + count == session.context_length:
                reason = "length"
                break
        if shown := answer.finish():
            first = first or self._clock()
            on_text(shown)
        return Answer(
            text=answer.text,
            prompt_tokens=len(prompt),
            answer_tokens=count,
            load_seconds=load_seconds,
            prompt_seconds=evaluated - begun,
            answer_seconds=self._clock() - evaluated,
            stop_reason=reason,
            tokens_before_code=answer.tokens_before_code,
            first_token_seconds=None if first is None else first - asked,
        )

    def count_tokens(self, model: str, text: str) -> int:
        """Tokens of plain text (none added) in that model's vocabulary; loads the model when it isn't."""
        wanted = self._resolve(model)
        if self._session is None or self._loaded is None or self._loaded[0] != wanted.gguf:  # whatever the adapter
            self._open(wanted, GenerationOptions().context_length)
        assert self._session is not None
        return len(self._session.tokenize(text, add_special=False))

    def unload(self, model: str) -> None:
        wanted = self._resolve(model)
        if self._loaded and self._loaded[:2] == (wanted.gguf, wanted.adapter):
            self.close()

    def close(self) -> None:
        """Frees whatever model is loaded."""
        if self._session:
            self._session.close()
        self._files.close()
        self._session = self._loaded = None

    def _resolve(self, model: str) -> _Loadable:
        if adapted := self._adapters.get(model):
            return _Loadable(adapted.gguf, adapted.adapter, adapted.definition)
        # Ollama's blobs are named by their digest; no tag is an absolute path.
        if model.lower().endswith(".gguf") or Path(model).is_absolute():
            return _Loadable(Path(model).absolute(), None, Modelfile())
        entry = self._find(model)
        return _Loadable(entry.usable_gguf(), None, entry.definition)

    def _open(self, wanted: _Loadable, context_length: int) -> LlamaSession:
        key = wanted.gguf, wanted.adapter, context_length
        started = self._clock()
        if self._session is None or self._loaded != key:
            self.close()
            file = self._files.enter_context(self._loadable(wanted.gguf))
            self._session = LlamaSession(file, context_length, self._threads, self._gpu_layers, adapter=wanted.adapter)
            self._loaded = key
        self._load_seconds += self._clock() - started
        return self._session

    def _prompt(
        self, session: LlamaSession, definition: Modelfile, messages: tuple[Message, ...]
    ) -> tuple[list[int], tuple[str, ...]]:
        """Tokens of the rendered conversation, and the stops."""
        stops, template = definition.stops, session.metadata("tokenizer.chat_template")
        if not template:
            chosen = choose_template(None, session.metadata("general.architecture"), is_token=session.is_token)
            template, stops = chosen.jinja, stops or chosen.definition.stops
        bos = session.bos_token
        text = render_chat(template, conversation(definition, messages), bos_token=bos, eos_token=session.eos_token)
        if session.adds_bos:  # by the tokenizer; a template that also writes it would double it
            text = text.removeprefix(bos)
        return session.tokenize(text, add_special=True), stops
