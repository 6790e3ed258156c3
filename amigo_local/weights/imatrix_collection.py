"""Measuring an importance matrix: llama.cpp evaluates texts, and the input of every weight is squared and summed."""

from __future__ import annotations

import ctypes
import os
from array import array
from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import llama_cpp
import numpy as np
import numpy.typing as npt

from amigo_local.domain.errors import AmigoError, InputError
from amigo_local.domain.events import Emit, Progress
from amigo_local.weights.gguf_header import GgufHeader, read_header
from amigo_local.weights.graph_reader import F32, GraphReader, Tensor
from amigo_local.weights.imatrix import ImportanceEntry, ImportanceMatrix
from amigo_local.weights.language_model import copy_bytes, loadable
from amigo_local.weights.llama_cpp_model import LlamaCppModel, QuietLog

Sums = npt.NDArray[np.float64]
Counts = npt.NDArray[np.int64]

MIN_TOKENS = 32  # the first token of a chunk is an outlier in every layer; it must not be all there is
_LOGIT_BYTES = 64 << 20  # of logits nobody reads; llama.cpp holds them twice
_FLASH_ATTENTION_OFF = 0  # LLAMA_FLASH_ATTN_TYPE_DISABLED


def _weight_name(name: bytes) -> str:
    """`CUDA0#blk.0.attn_k.weight#0` -> `blk.0.attn_k.weight` (filter_tensor_name in imatrix.cpp)."""
    parts = name.decode("utf-8", "replace").split("#")
    return parts[1] if len(parts) > 1 else parts[0]


class _Collector:
    """Sums of squares, filled by llama.cpp's eval callback (collect_imatrix in imatrix.cpp, in double precision).

    An exception can't cross llama.cpp: it is kept in `failure`, and the evaluation is cut short.
    """

    def __init__(self, on_layer: Callable[[int], None]) -> None:
        self.sums: dict[str, Sums] = {}
        self.counts: dict[str, Counts] = {}
        self.failure: BaseException | None = None
        self._newest = ""
        self._last_name: str | None = None  # after which nothing is left to see; known once a batch is through
        self._graph = GraphReader()
        self._on_layer, self._layer = on_layer, -1
        self.callback = llama_cpp.ggml_backend_sched_eval_callback(self._called)

    def _called(self, address: int, ask: bool, user_data: int | None) -> bool:
        """Asked: whether this node is wanted. Then with its result: whether to go on."""
        if self.failure is not None:
            return ask  # every part of the graph ends after its first node
        try:
            node = ctypes.cast(address, ctypes.POINTER(Tensor))[0]
            if node.op not in (self._graph.multiply, self._graph.multiply_by_expert):
                return not ask
            name = _weight_name(node.src[0][0].name)
            if ask:
                return name.startswith("blk.") and node.src[1][0].type == F32
            self._add(name, node)
            return name != self._last_name  # what follows is the head, in small models most of the work
        except BaseException as error:  # noqa: BLE001  # raised again by `decoded`
            self.failure = error
            return False

    def _add(self, name: str, node: Tensor) -> None:
        weight = node.src[0][0]
        inputs: npt.NDArray[np.float32] = self._graph.values(node.src[1], np.float32)
        if node.op == self._graph.multiply:
            if weight.ne[2] * weight.ne[3] != 1:
                raise InputError(
                    f"{name} holds {weight.ne[2] * weight.ne[3]} matrices and no experts, which isn't measured here",
                    "export this model without an importance matrix",
                )
            added = np.einsum("abij,abij->j", inputs, inputs, dtype=np.float64)[None]
            seen = np.array([inputs.size // inputs.shape[-1]])
        else:
            added, seen = self._by_expert(inputs[0], self._graph.values(node.src[2], np.int32)[0, 0], weight.ne[2])
        if not np.isfinite(added).all():
            raise AmigoError(f"the inputs of {name} are not finite", "the model's weights are damaged: take it anew")
        self.sums[name] = self.sums.get(name, 0) + added
        self.counts[name] = self.counts.get(name, 0) + seen
        self._newest = name
        layer = int(part) if (part := name.split(".")[1]).isdigit() else self._layer
        if layer != self._layer:
            self._layer = layer
            self._on_layer(layer)

    @staticmethod
    def _by_expert(inputs: npt.NDArray[np.float32], experts: npt.NDArray[np.int32], count: int) -> tuple[Sums, Counts]:
        """`inputs`: (tokens, 1 or experts used, columns); `experts`: (tokens, experts used) ids."""
        added = np.zeros((count, inputs.shape[-1]))
        for expert in np.unique(experts):
            tokens, places = np.nonzero(experts == expert)
            rows = inputs[tokens, places % inputs.shape[1]]
            added[expert] = np.einsum("ij,ij->j", rows, rows, dtype=np.float64)
        return added, np.bincount(experts.reshape(-1), minlength=count)

    def decoded(self) -> None:
        """To be called after each evaluation: raises what the callback could not."""
        if self.failure is not None:
            raise self.failure
        self._last_name = self._newest


class _MeasuredModel(LlamaCppModel):
    """llama.cpp with a callback on every node, and room for one chunk of tokens."""

    def __init__(self, path: Path, context_tokens: int, threads: int | None, callback: Any) -> None:
        self._asked_tokens, self._callback = context_tokens, callback
        super().__init__(path, threads=threads)

    def _new_context(self, path: Path, threads: int | None, log: QuietLog) -> object:
        self.context_tokens = min(self._asked_tokens, llama_cpp.llama_model_n_ctx_train(self._model))
        self.batch_tokens = max(MIN_TOKENS, min(self.context_tokens, _LOGIT_BYTES // (4 * self.vocabulary_size)))
        settings = llama_cpp.llama_context_default_params()
        settings.n_ctx = self.context_tokens
        settings.n_batch = settings.n_ubatch = settings.n_outputs_max = self.batch_tokens
        settings.n_threads = settings.n_threads_batch = threads or max(1, (os.cpu_count() or 2) // 2)
        # As in LlamaCppModel: what is measured must not depend on how the cache rounds.
        settings.type_k = settings.type_v = F32
        settings.flash_attn_type = _FLASH_ATTENTION_OFF
        settings.swa_full = True
        settings.no_perf = True
        settings.cb_eval = self._callback
        context: object = llama_cpp.llama_init_from_model(self._model, settings)
        if not context:
            self.close()
            raise AmigoError(f"{path}: llama.cpp can't make a context: {log.first_error}", "free some memory")
        return context

    @property
    def layers(self) -> int:
        return max(1, int(llama_cpp.llama_model_n_layer(self._model)))

    @property
    def first_token(self) -> int | None:
        """What the model is used to seeing first; None when it isn't used to anything."""
        adds = llama_cpp.llama_vocab_get_add_bos(self._vocabulary)
        return int(llama_cpp.llama_vocab_bos(self._vocabulary)) if adds else None

    def plain_tokens(self, text: str) -> Sequence[int]:
        """Ids of running text: nothing added, markers of special tokens in it left as text."""
        data = text.encode("utf-8", "replace")
        room = (llama_cpp.llama_token * (len(data) + 8))()
        count = llama_cpp.llama_tokenize(self._vocabulary, data, len(data), room, len(room), False, False)
        if count < 0:
            raise AmigoError(f"llama.cpp can't tokenize {text[:40]!r}")
        return list(room[:count])

    def evaluate(self, tokens: Sequence[int], position: int) -> None:
        """At most `batch_tokens` tokens; position 0 begins a new text.

        Logits are asked for after every token: the last layer leaves out the others (inp_out_ids in llama.cpp's
        graphs), and its weights would see one row.
        """
        batch = llama_cpp.llama_batch_init(len(tokens), 0, 1)
        try:
            batch.n_tokens = len(tokens)
            for i, token in enumerate(tokens):
                batch.token[i], batch.pos[i] = token, position + i
                batch.n_seq_id[i], batch.seq_id[i][0] = 1, 0
                batch.logits[i] = 1
            with QuietLog() as log:
                if position == 0:
                    llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(self._context), True)
                status = llama_cpp.llama_decode(self._context, batch)
            if status != 0:
                raise AmigoError(f"llama.cpp failed to evaluate a text ({status}): {log.first_error}")
        finally:
            llama_cpp.llama_batch_free(batch)


def imatrix_disk_needed(header: GgufHeader) -> int:
    """Bytes that the file and what `collect` puts beside it take at most."""
    # Of every matrix a float for each column, experts apart, and two rows of the tensor table.
    sums = sum(4 * tensor.elements // tensor.dimensions[1] for tensor in header.tensors if len(tensor.dimensions) > 1)
    return sums + 256 * len(header.tensors) + _copy_bytes(header)


def _copy_bytes(header: GgufHeader) -> int:
    """What a copy that llama.cpp can load takes; 0 where it is given the file itself, as every kind of model that
    isn't mended or exported here: llama.cpp then says whether it can."""
    try:
        return copy_bytes(header)
    except InputError:
        return 0


def collect(
    gguf_path: Path,
    samples: Iterable[str | Sequence[int]],
    emit: Emit,
    *,
    scratch_dir: Path,
    context_tokens: int = 512,
    threads: int | None = None,
    max_chunks: int | None = None,
    datasets: tuple[str, ...] = (),
) -> ImportanceMatrix:
    """Evaluates `samples`, one after the other, in chunks of `context_tokens` and returns what was measured.

    A sample is text or token ids of this model; no more are taken than `max_chunks` chunks need. As in llama-imatrix a
    chunk begins with the BOS token where the model is used to one, an unfilled last one is left out (unless it is the
    only one), and the embedding and the head are not measured. `scratch_dir` takes a copy of the language model where
    llama.cpp can't load the file itself.

    Raises InputError for too few tokens or ids that the model doesn't have; whatever `emit` raises passes through.
    """
    header = read_header(gguf_path)
    with loadable(header, scratch_dir) if _copy_bytes(header) else nullcontext(header.path) as path:
        return _collect(path, samples, emit, context_tokens, threads, max_chunks, datasets)


def _collect(
    path: Path,
    samples: Iterable[str | Sequence[int]],
    emit: Emit,
    context_tokens: int,
    threads: int | None,
    max_chunks: int | None,
    datasets: tuple[str, ...],
) -> ImportanceMatrix:
    done = total = batch = 0

    def on_layer(layer: int) -> None:
        emit(Progress("measuring importance", done + batch * layer // layers, total, "tokens"))

    collector = _Collector(on_layer)
    with _MeasuredModel(path, context_tokens, threads, collector.callback) as model:
        layers = model.layers
        wanted = None if max_chunks is None else max_chunks * model.context_tokens
        tokens = _tokens(model, samples, wanted)
        size = min(model.context_tokens, len(tokens))
        chunks = len(tokens) // size
        total = chunks * size
        for start in range(0, total, size):
            chunk = tokens[start : start + size]
            if model.first_token is not None:
                chunk[0] = model.first_token
            for position in range(0, size, model.batch_tokens):
                piece = chunk[position : position + model.batch_tokens]
                batch = len(piece)
                model.evaluate(piece, position)
                collector.decoded()
                done += batch
        emit(Progress("measuring importance", total, total, "tokens"))
    return ImportanceMatrix(
        entries={
            name: ImportanceEntry(collector.sums[name].astype(np.float32), collector.counts[name])
            for name in sorted(collector.sums)
        },
        datasets=datasets,
        chunk_count=chunks,
        chunk_size=size,
    )


def _tokens(model: _MeasuredModel, samples: Iterable[str | Sequence[int]], wanted: int | None) -> array[int]:
    """All samples in a row, at most `wanted` tokens (None: all)."""
    tokens = array("i")
    for sample in samples:
        ids = model.plain_tokens(sample) if isinstance(sample, str) else sample
        if ids and not 0 <= min(ids) <= max(ids) < model.vocabulary_size:
            raise InputError(
                f"a sample holds the token {max(ids) if min(ids) >= 0 else min(ids)}, "
                f"this model has {model.vocabulary_size}",
                "prepare the data with this model's own tokenizer",
            )
        tokens.extend(ids)
        if wanted is not None and len(tokens) >= wanted:
            return tokens[:wanted]
    if len(tokens) < MIN_TOKENS:
        raise InputError(
            f"the texts are {len(tokens)} tokens long, an importance matrix takes at least {MIN_TOKENS}",
            "give more text: some ten thousand tokens of what the model will be asked",
        )
    return tokens
