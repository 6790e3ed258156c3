"""llama.cpp as a reference: token ids and logits of a GGUF, on the CPU, in silence."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

import llama_cpp
import numpy as np

from amigo_local.domain.errors import AmigoError
from amigo_local.weights.kernels import Rows
from amigo_local.weights.probe import Probe

MAX_CONTEXT_TOKENS = 256
_GGML_TYPE_F32 = 0
_FLASH_ATTENTION_OFF = 0  # LLAMA_FLASH_ATTN_TYPE_DISABLED
_ERROR, _CONTINUED = 4, 5  # enum ggml_log_level: GGML_LOG_LEVEL_ERROR, GGML_LOG_LEVEL_CONT
_KEPT_LINES = 20


@llama_cpp.llama_log_callback  # type: ignore[untyped-decorator]  # ctypes
def _silence(level: int, text: bytes, user_data: ctypes.c_void_p) -> None:
    """Stays installed: llama.cpp's own default writes to stderr."""


class QuietLog:
    """`with QuietLog() as log:` keeps llama.cpp's error lines for a message instead of printing them."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self._level = 0

        @llama_cpp.llama_log_callback  # type: ignore[untyped-decorator]  # ctypes
        def keep(level: int, text: bytes, user_data: ctypes.c_void_p) -> None:
            self._level = self._level if level == _CONTINUED else level
            if self._level == _ERROR and len(self.lines) < _KEPT_LINES:
                self.lines.append(text.decode("utf-8", "replace").strip())

        self._callback = keep

    @property
    def first_error(self) -> str:
        return next((line for line in self.lines if line), "llama.cpp gave no reason")

    def __enter__(self) -> Self:
        llama_cpp.llama_log_set(self._callback, ctypes.c_void_p(0))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        llama_cpp.llama_log_set(_silence, ctypes.c_void_p(0))


class LlamaCppModel:
    """One loaded GGUF; `vocabulary_only` loads no weights and can only tokenize.

    Raises AmigoError with llama.cpp's first error line when it refuses the file.
    """

    def __init__(self, path: Path, *, vocabulary_only: bool = False, threads: int | None = None) -> None:
        with QuietLog() as log:
            llama_cpp.llama_backend_init()
            settings = llama_cpp.llama_model_default_params()
            settings.n_gpu_layers = 0  # the reference is the CPU's arithmetic
            settings.vocab_only = vocabulary_only
            settings.use_extra_bufts = False  # weights stay in the mapped file, not repacked into memory
            self._context = None
            self._model = llama_cpp.llama_model_load_from_file(str(path).encode(), settings)
            if not self._model:
                raise AmigoError(f"{path}: llama.cpp can't load it: {log.first_error}", "export the file again")
            self._vocabulary = llama_cpp.llama_model_get_vocab(self._model)
            self.vocabulary_size: int = llama_cpp.llama_vocab_n_tokens(self._vocabulary)
            if not vocabulary_only:
                self._context = self._new_context(path, threads, log)

    def _new_context(self, path: Path, threads: int | None, log: QuietLog) -> object:
        settings = llama_cpp.llama_context_default_params()
        settings.n_ctx = settings.n_batch = settings.n_ubatch = MAX_CONTEXT_TOKENS
        settings.n_outputs_max = MAX_CONTEXT_TOKENS
        settings.n_threads = settings.n_threads_batch = threads or max(1, (os.cpu_count() or 2) // 2)
        # Nothing but the weights' own formats may round: keys and values stay in full precision.
        settings.type_k = settings.type_v = _GGML_TYPE_F32
        settings.flash_attn_type = _FLASH_ATTENTION_OFF
        settings.swa_full = True
        settings.no_perf = True
        context: object = llama_cpp.llama_init_from_model(self._model, settings)
        if not context:
            self.close()
            raise AmigoError(f"{path}: llama.cpp can't make a context: {log.first_error}", "free some memory")
        return context

    def tokenize(self, text: str, *, add_special: bool = True) -> list[int]:
        """Ids as the server would feed them: special tokens in the text parsed, BOS and EOS as the model wants.

        `add_special` False leaves BOS and EOS out, for a text that a chat template made.
        """
        data = text.encode()
        room = (llama_cpp.llama_token * (len(data) + 8))()
        count = llama_cpp.llama_tokenize(self._vocabulary, data, len(data), room, len(room), add_special, True)
        if count < 0:
            raise AmigoError(f"llama.cpp can't tokenize {text[:40]!r}")
        return list(room[:count])

    def logits(self, probes: Sequence[Probe]) -> Rows:
        """(positions of all probes, vocabulary) float32: the next-token logits after each position."""
        rows = np.empty((sum(len(probe.positions) for probe in probes), self.vocabulary_size), np.float32)
        done = 0
        for probe in probes:
            rows[done : done + len(probe.positions)] = self._evaluate(probe)
            done += len(probe.positions)
        return rows

    def _evaluate(self, probe: Probe) -> Rows:
        assert self._context is not None and len(probe.tokens) <= MAX_CONTEXT_TOKENS
        wanted = set(probe.positions)
        batch = llama_cpp.llama_batch_init(len(probe.tokens), 0, 1)
        try:
            batch.n_tokens = len(probe.tokens)
            for i, token in enumerate(probe.tokens):
                batch.token[i], batch.pos[i] = token, i
                batch.n_seq_id[i], batch.seq_id[i][0] = 1, 0
                batch.logits[i] = i in wanted
            with QuietLog() as log:
                llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(self._context), True)
                status = llama_cpp.llama_decode(self._context, batch)
            if status != 0:
                raise AmigoError(f"llama.cpp failed to evaluate a prompt ({status}): {log.first_error}")
        finally:
            llama_cpp.llama_batch_free(batch)
        # Only the wanted positions' rows are there, one after the other.
        pointer = llama_cpp.llama_get_logits(self._context)
        found: Rows = np.ctypeslib.as_array(pointer, (len(wanted), self.vocabulary_size))
        return found

    def close(self) -> None:
        if self._context is not None:
            llama_cpp.llama_free(self._context)
            self._context = None
        if self._model is not None:
            llama_cpp.llama_model_free(self._model)
            self._model = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
