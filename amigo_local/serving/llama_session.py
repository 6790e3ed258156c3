"""One GGUF in memory through llama.cpp's C interface: tokenize, evaluate a prompt, sample token by token."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import llama_cpp

from amigo_local.domain.errors import AmigoError, InputError
from amigo_local.domain.generation import GenerationOptions

_BATCH_TOKENS = 512  # Ollama's num_batch
_PENALTY_WINDOW_TOKENS = 64  # Ollama's repeat_last_n
_ERROR = 4  # ggml.h: enum ggml_log_level (GGML_LOG_LEVEL_ERROR)
# Layers to try on a graphics card, most first; -1 is all. A model larger than the card runs on both.
_GPU_LAYERS = (-1, 40, 32, 24, 16, 8, 0)


@llama_cpp.llama_log_callback  # type: ignore[untyped-decorator]  # ctypes
def _silence(level: int, text: bytes, user_data: object) -> None:
    """Stays installed: llama.cpp's own default writes to stderr."""


class _ErrorLines:
    """`with _ErrorLines() as log:` keeps what llama.cpp would print as errors."""

    def __init__(self) -> None:
        self.lines: list[str] = []

        @llama_cpp.llama_log_callback  # type: ignore[untyped-decorator]  # ctypes
        def keep(level: int, text: bytes, user_data: object) -> None:
            if level == _ERROR:
                self.lines.append(text.decode("utf-8", "replace").strip())

        self._callback = keep

    @property
    def first(self) -> str:
        return next(filter(None, self.lines), "llama.cpp gives no reason")

    def __enter__(self) -> Self:
        llama_cpp.llama_log_set(self._callback, ctypes.c_void_p(0))
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        llama_cpp.llama_log_set(_silence, ctypes.c_void_p(0))


class LlamaSession:
    """A loaded model with one context. The weights are mapped from the file, not copied."""

    def __init__(
        self,
        gguf_path: Path,
        context_length: int,
        threads: int,
        gpu_layers: int | None = None,
        adapter: Path | None = None,
    ) -> None:
        """`context_length` is cut to what the model was trained with. `gpu_layers`: None puts as many layers on a
        graphics card as fit. `adapter`: a LoRA GGUF that is applied to every token. Raises InputError when llama.cpp
        can't load a file, or the adapter is another base's."""
        self._model: Any = None
        self._adapter: Any = None
        self._context: Any = None
        for path in (gguf_path, adapter):
            if path is not None:
                _check_magic(path)
        llama_cpp.llama_backend_init()
        if not llama_cpp.llama_supports_gpu_offload():
            tries: tuple[int, ...] = (0,)
        else:
            tries = _GPU_LAYERS if gpu_layers is None else (gpu_layers,)
        for layers in tries:
            try:
                with _ErrorLines() as log:
                    self._load(gguf_path, layers, adapter, log)
                    self._make_context(gguf_path, context_length, threads, log)
                break
            except InputError:
                self.close()
                if layers == tries[-1]:  # of several tries the one whose reason can't be a full card
                    raise
        self._vocabulary = llama_cpp.llama_model_get_vocab(self._model)
        self.context_length = int(llama_cpp.llama_n_ctx(self._context))

    def _load(self, gguf_path: Path, gpu_layers: int, adapter: Path | None, log: _ErrorLines) -> None:
        settings = llama_cpp.llama_model_default_params()
        settings.n_gpu_layers = gpu_layers
        settings.load_mode = llama_cpp.LLAMA_LOAD_MODE_MMAP
        self._model = llama_cpp.llama_model_load_from_file(str(gguf_path).encode(), settings)
        if not self._model:
            raise _unloadable(gguf_path, log)
        if adapter is None:
            return
        # A context reserves room for the adapters that its model has by then. The model frees them.
        self._adapter = llama_cpp.llama_adapter_lora_init(self._model, str(adapter).encode())
        if not self._adapter:
            raise InputError(
                f"llama.cpp can't apply the adapter {adapter} to {gguf_path}: {log.first}",
                "give the base that the adapter was trained on, or write the adapter again",
            )

    def _make_context(self, gguf_path: Path, context_length: int, threads: int, log: _ErrorLines) -> None:
        settings = llama_cpp.llama_context_default_params()
        settings.n_ctx = min(context_length, llama_cpp.llama_model_n_ctx_train(self._model))
        settings.n_batch = settings.n_ubatch = _BATCH_TOKENS
        settings.n_threads = settings.n_threads_batch = threads
        # Sliding-window layers keep only their window: Gemma 3's cache is a fifth of the full one.
        settings.swa_full = False
        self._context = llama_cpp.llama_init_from_model(self._model, settings)
        if not self._context:
            raise _unloadable(gguf_path, log)
        if self._adapter:
            adapters = (llama_cpp.llama_adapter_lora_p_ctypes * 1)(self._adapter)
            if llama_cpp.llama_set_adapters_lora(self._context, adapters, 1, (ctypes.c_float * 1)(1.0)):
                raise _unloadable(gguf_path, log)

    def close(self) -> None:
        """Frees the memory; safe to call twice."""
        if self._context:
            llama_cpp.llama_free(self._context)
        if self._model:
            llama_cpp.llama_model_free(self._model)
        self._context = self._adapter = self._model = None

    def metadata(self, key: str) -> str:
        """A scalar or string of the GGUF as text; empty when absent."""
        size = llama_cpp.llama_model_meta_val_str(self._model, key.encode(), None, 0)
        if size < 0:
            return ""
        buffer = ctypes.create_string_buffer(size + 1)
        llama_cpp.llama_model_meta_val_str(self._model, key.encode(), ctypes.cast(buffer, ctypes.c_char_p), size + 1)
        return buffer.value.decode("utf-8", "replace")

    @property
    def bos_token(self) -> str:
        return self._token_text(llama_cpp.llama_vocab_bos(self._vocabulary))

    @property
    def eos_token(self) -> str:
        return self._token_text(llama_cpp.llama_vocab_eos(self._vocabulary))

    @property
    def adds_bos(self) -> bool:
        return bool(llama_cpp.llama_vocab_get_add_bos(self._vocabulary))

    def is_token(self, text: str) -> bool:
        """Whether the vocabulary has exactly this text as one special token."""
        tokens = self.tokenize(text, add_special=False)
        return len(tokens) == 1 and self._token_text(tokens[0]) == text

    def tokenize(self, text: str, add_special: bool) -> list[int]:
        """Special tokens in the text are parsed; `add_special` adds BOS and EOS where the model wants them."""
        data = text.encode()
        size = len(data) + 2  # no token is shorter than a byte, and at most two are added
        tokens = (llama_cpp.llama_token * size)()
        count = llama_cpp.llama_tokenize(self._vocabulary, data, len(data), tokens, size, add_special, True)
        if count < 0:
            raise AmigoError(f"llama.cpp can't tokenize a text of {len(data)} bytes")
        return list(tokens[:count])

    def piece(self, token: int) -> bytes:
        """UTF-8 of one token, which may hold part of a character; special tokens are spelled out, as Ollama does."""
        buffer = ctypes.create_string_buffer(64)
        size = llama_cpp.llama_token_to_piece(self._vocabulary, token, buffer, len(buffer), 0, True)
        if size < 0:
            buffer = ctypes.create_string_buffer(-size)
            size = llama_cpp.llama_token_to_piece(self._vocabulary, token, buffer, len(buffer), 0, True)
        return buffer.raw[:size]

    def evaluate(self, prompt: list[int]) -> None:
        """Starts a new sequence with these tokens.

        Nothing of an earlier prompt is reused: an answer must not depend on what was asked before it.
        """
        llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(self._context), True)
        for start in range(0, len(prompt), _BATCH_TOKENS):
            self._decode(prompt[start : start + _BATCH_TOKENS])

    def sample(self, prompt: list[int], options: GenerationOptions) -> Iterator[int]:
        """Tokens after an evaluated prompt, until the model ends its turn or the context is full."""
        chain = self._sampler(options)
        try:
            for token in prompt:  # penalties count the prompt, as in Ollama's runner
                llama_cpp.llama_sampler_accept(chain, token)
            for _ in range(self.context_length - len(prompt)):
                token = int(llama_cpp.llama_sampler_sample(chain, self._context, -1))
                if llama_cpp.llama_vocab_is_eog(self._vocabulary, token):
                    return
                yield token
                self._decode([token])
        finally:
            llama_cpp.llama_sampler_free(chain)

    def _sampler(self, options: GenerationOptions) -> Any:
        """In the order of llama.cpp's common/sampling.cpp, which Ollama uses."""
        chain = llama_cpp.llama_sampler_chain_init(llama_cpp.llama_sampler_chain_default_params())
        add, size = llama_cpp.llama_sampler_chain_add, llama_cpp.llama_vocab_n_tokens(self._vocabulary)
        if options.repeat_penalty != 1.0:
            window, penalty = _PENALTY_WINDOW_TOKENS, options.repeat_penalty
            add(chain, llama_cpp.llama_sampler_init_penalties(size, window, penalty, 0.0, 0.0))
        if options.temperature <= 0:
            add(chain, llama_cpp.llama_sampler_init_greedy())
            return chain
        add(chain, llama_cpp.llama_sampler_init_top_k(options.top_k))
        add(chain, llama_cpp.llama_sampler_init_top_p(options.top_p, 1))
        add(chain, llama_cpp.llama_sampler_init_min_p(options.min_p, 1))
        add(chain, llama_cpp.llama_sampler_init_temp(options.temperature))
        add(chain, llama_cpp.llama_sampler_init_dist(options.seed & 0xFFFFFFFF))
        return chain

    def _decode(self, tokens: list[int]) -> None:
        array = (llama_cpp.llama_token * len(tokens))(*tokens)  # the batch only points to it
        status = llama_cpp.llama_decode(self._context, llama_cpp.llama_batch_get_one(array, len(tokens)))
        if status != 0:
            raise AmigoError(f"llama.cpp failed to evaluate {len(tokens)} tokens (llama_decode: {status})")

    def _token_text(self, token: int) -> str:
        return self.piece(token).decode("utf-8", "replace") if token >= 0 else ""


def _unloadable(gguf_path: Path, log: _ErrorLines) -> InputError:
    return InputError(f"llama.cpp can't load {gguf_path}: {log.first}", "make or download the file again")


def _check_magic(gguf_path: Path) -> None:
    try:
        with gguf_path.open("rb") as file:
            magic = file.read(4)
    except OSError as error:
        raise InputError(f"{gguf_path} can't be read: {error.strerror}", "give the path of a GGUF file") from error
    if magic != b"GGUF":
        raise InputError(f"{gguf_path} is no GGUF: it begins with {magic!r}", "give the path of a GGUF file")
