"""The importance matrix: how strongly each column of a weight is used, and llama.cpp's two files of it."""

from __future__ import annotations

import os
import struct
from pathlib import Path

import msgspec
import numpy as np
import numpy.typing as npt

from amigo_local.domain.errors import InputError
from amigo_local.weights.gguf_cursor import Source, open_source, shown
from amigo_local.weights.gguf_header import parse
from amigo_local.weights.gguf_writer import GgufWriter, PlannedTensor, encode_field
from amigo_local.weights.kernels import Rows

Counts = npt.NDArray[np.int64]

# LLM_KV_IMATRIX_* in imatrix-loader.h; llama-quantize refuses a file that lacks one of them.
_DATASETS, _CHUNK_COUNT, _CHUNK_SIZE = "imatrix.datasets", "imatrix.chunk_count", "imatrix.chunk_size"
_SUMS, _COUNTS = ".in_sum2", ".counts"
_F32 = 0  # GGML_TYPE_F32
_MAX_COUNT = 1 << 53  # beyond it a double no longer counts
_HINT = "take another file, or make one: amigo-local imatrix REF --texts FILE"


class ImportanceEntry(msgspec.Struct, frozen=True):
    """What was measured of one weight tensor. A row for each of its matrices: one, or one per expert."""

    sums: Rows
    """(matrices, columns) float32: the squares of what each column is multiplied with, summed.

    Sums and not means are kept, as in the file, so that reading and writing round nothing.
    """
    counts: Counts
    """(matrices,) int64: tokens in a sum; evaluations in a file of the old format."""

    @property
    def means(self) -> Rows:
        """(matrices, columns) float32; 1.0 for a matrix that saw no token (load_imatrix in quantize.cpp)."""
        seen = self.counts > 0
        divided = self.sums / np.where(seen, self.counts, 1).astype(np.float32)[:, None]
        return np.where(seen[:, None], divided, np.float32(1))


class ImportanceMatrix(msgspec.Struct, frozen=True, kw_only=True):
    """Entries by the name of their weight tensor. Compare with `==` field by field only: it holds arrays."""

    entries: dict[str, ImportanceEntry]
    datasets: tuple[str, ...] = ()
    """Names of what it was measured on."""
    chunk_count: int = 0
    chunk_size: int = 0
    """Tokens; 0 where the file (of the old format) doesn't say."""
    path: Path | None = None
    """The file it was read from."""

    def row_weights(self, name: str, columns: int, matrices: int = 1) -> Rows | None:
        """(columns,) float32 for ggml_quantize_chunk; (matrices, columns) for a tensor of several matrices.

        None, to quantize without weights, where the file has no such entry, as llama_model_quantize does; it also
        passes over one for the embedding that doesn't fit. Raises InputError for any other that doesn't.
        """
        entry = self.entries.get(name)
        if entry is None:
            return None
        means = entry.means.reshape(-1)
        if means.size != columns * matrices:
            if name == "token_embd.weight":
                return None
            raise InputError(
                f"{self.path or 'the importance matrix'}: {name} has {means.size} values, "
                f"its rows in this model are {columns * matrices} long",
                "give the importance matrix of this very model",
            )
        return means if matrices == 1 else means.reshape(matrices, columns)


def read_importance_matrix(path: Path) -> ImportanceMatrix:
    """Reads what llama-imatrix writes: GGUF, or the .dat of older versions (common_imatrix_load in imatrix-loader.cpp).

    Raises InputError for anything else, for files cut short, and naming the entry for numbers that can't be means of
    squares. No length is believed before the file is known to hold it.
    """
    with open_source(path) as source:
        is_gguf = source.read(0, min(4, source.size)) == b"GGUF"
        return _read_gguf(source) if is_gguf else _read_legacy(source)


def _entry(path: Path, name: str, sums: Rows, counts: npt.NDArray[np.float32]) -> ImportanceEntry:
    """From flat arrays, checked."""
    if sums.size % counts.size:
        raise InputError(f"{path}: {name} has {sums.size} sums for {counts.size} counts, expected a multiple", _HINT)
    for what, values, limit in (("sums", sums, np.inf), ("counts", counts, _MAX_COUNT)):
        if (wrong := values[~((values >= 0) & (values < limit))]).size:
            raise InputError(
                f"{path}: the {what} of {name} hold {wrong[0]:g}, expected finite numbers from 0 up", _HINT
            )
    return ImportanceEntry(sums.reshape(counts.size, -1), np.rint(counts).astype(np.int64))


def _read_gguf(source: Source) -> ImportanceMatrix:
    header, path = parse(source)[0], source.path
    for key in (_DATASETS, _CHUNK_COUNT, _CHUNK_SIZE):
        if key not in header.metadata:
            raise InputError(f"{path}: this GGUF is no importance matrix: it has no {key}", _HINT)
    chunk_count, chunk_size = header.metadata[_CHUNK_COUNT], header.metadata[_CHUNK_SIZE]
    if (
        type(chunk_count) is not int
        or type(chunk_size) is not int
        or not (0 <= chunk_count < 1 << 32 and 0 <= chunk_size < 1 << 32)
    ):
        raise InputError(f"{path}: {_CHUNK_COUNT} or {_CHUNK_SIZE} is no uint32", _HINT)
    table = {tensor.name: tensor for tensor in header.tensors}

    def values(name: str) -> Rows:
        if name not in table:
            raise InputError(f"{path}: has no tensor {name}", _HINT)
        if table[name].type_id != _F32:
            raise InputError(f"{path}: tensor {name} is {table[name].type_name}, expected F32", _HINT)
        return np.frombuffer(source.read(table[name].offset, table[name].nbytes), "<f4")

    # Other statistics in the file are no concern of quantizing.
    names = {name.removesuffix(suffix) for name in table for suffix in (_SUMS, _COUNTS) if name.endswith(suffix)}
    entries = {name: _entry(path, name, values(name + _SUMS), values(name + _COUNTS)) for name in sorted(names)}
    if not entries:
        raise InputError(f"{path}: holds no entries", _HINT)
    datasets = tuple(str(dataset) for dataset in header.array(_DATASETS))
    return ImportanceMatrix(
        entries=entries, datasets=datasets, chunk_count=chunk_count, chunk_size=chunk_size, path=path
    )


def _read_legacy(source: Source) -> ImportanceMatrix:
    """save_imatrix_legacy in imatrix.cpp: counts and lengths are int32, values are means times evaluations."""
    path, position = source.path, 0

    def take(count: int, what: str) -> bytes:
        nonlocal position
        if not 0 <= count <= source.size - position:
            raise InputError(
                f"{path}: neither a GGUF nor a whole imatrix file of the old format: {what} takes {count} bytes "
                f"from byte {position} on, the file has {source.size}",
                _HINT,
            )
        position += count
        return source.read(position - count, count)

    def number(what: str) -> int:
        value: int = struct.unpack("<i", take(4, what))[0]
        return value

    entries: dict[str, ImportanceEntry] = {}
    count = number("the number of entries")
    if not 1 <= count <= source.size // 16:  # three lengths and one value are the least that an entry takes
        raise InputError(f"{path}: neither a GGUF nor an imatrix file of the old format: {count} entries", _HINT)
    for _ in range(count):
        name = shown(take(number("the length of a name"), "a name").decode("utf-8", "replace"))
        if name in entries:
            raise InputError(f"{path}: entry {name} is there twice", _HINT)
        evaluations, length = number(name), number(name)
        if length < 1:
            raise InputError(f"{path}: {name} has {length} values", _HINT)
        sums = np.frombuffer(take(4 * length, name), "<f4")
        # load_imatrix in quantize.cpp takes the values as they are where there were no evaluations.
        entries[name] = _entry(path, name, sums, np.array([max(evaluations, 1)], np.float32))
    chunk_count = 0
    datasets: tuple[str, ...] = ()
    if position < source.size:  # the first versions end here
        chunk_count = number("the number of chunks")
        dataset = take(number("the length of the data set's name"), "the data set's name")
        datasets = (dataset.decode("utf-8", "replace"),) if dataset else ()
    return ImportanceMatrix(entries=entries, datasets=datasets, chunk_count=max(chunk_count, 0), path=path)


def write_importance_matrix(matrix: ImportanceMatrix, path: Path) -> None:
    """Writes GGUF as llama-imatrix does (save_imatrix in imatrix.cpp), through `PATH.partial`."""
    fields = [
        encode_field("general.type", "imatrix"),
        encode_field(_DATASETS, matrix.datasets),
        encode_field(_CHUNK_COUNT, matrix.chunk_count),
        encode_field(_CHUNK_SIZE, matrix.chunk_size),
    ]
    tensors: list[tuple[str, Rows]] = []
    for name, entry in sorted(matrix.entries.items()):
        tensors += [(name + _SUMS, entry.sums), (name + _COUNTS, entry.counts.astype(np.float32)[:, None])]
    # ggml leaves out trailing dimensions of 1: a single matrix makes vectors.
    plan = [
        PlannedTensor(name, values.shape[::-1] if len(values) > 1 else values.shape[1:], _F32)
        for name, values in tensors
    ]
    partial = path.with_name(path.name + ".partial")
    with GgufWriter(partial, fields, plan) as writer:
        for name, values in tensors:
            writer.write(name, np.ascontiguousarray(values, "<f4").view(np.uint8))
    with partial.open("rb+") as file:
        os.fsync(file.fileno())
    partial.replace(path)
