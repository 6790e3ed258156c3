"""A GGUF as llama.cpp can load it: the file itself, or a passing copy without vision and with mended metadata."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil

from amigo_local.domain.units import GIB
from amigo_local.weights.architecture import architecture_of, map_tensors
from amigo_local.weights.gguf_header import GgufHeader, TensorInfo, Value
from amigo_local.weights.gguf_writer import GgufWriter, PlannedTensor, carried_fields
from amigo_local.weights.tensor_rows import TensorFile

# What llama.cpp takes a missing key for (llama-hparams.h): plain files that older converters wrote lack it.
_IMPLIED: dict[str, Value] = {"gemma3.rope.freq_base_swa": 10000.0}
_SPARED_BYTES = 2 * GIB  # for the rest of the machine, and for what a comparison itself takes


def mended_fields(header: GgufHeader, normal: GgufHeader) -> dict[str, Value]:
    """Metadata of `normal` that the file itself lacks or has differently."""
    return {key: value for key, value in normal.metadata.items() if value != header.metadata.get(key)}


def language_tensors(header: GgufHeader) -> list[TensorInfo]:
    """The tensors in file order without those of a vision tower."""
    family = architecture_of(header)
    return [tensor for tensor in header.tensors if not family.is_skipped(tensor.name)]


def needs_copy(header: GgufHeader) -> bool:
    """llama.cpp refuses a file with tensors or without keys that its architecture doesn't know or needs."""
    family = architecture_of(header)
    mended = mended_fields(header, family.normalize(header))
    return any(_IMPLIED.get(key) != value for key, value in mended.items()) or bool(map_tensors(header, family)[1])


def copy_bytes(header: GgufHeader) -> int:
    """What `loadable` writes, in memory or on disk; 0 where llama.cpp loads the file itself."""
    if not needs_copy(header):
        return 0
    return header.data_offset + sum(tensor.nbytes + header.alignment for tensor in language_tensors(header))


@contextmanager
def loadable(header: GgufHeader, scratch_parent: Path, *, vocabulary_only: bool = False) -> Iterator[Path]:
    """Yields the path to load; a copy, where one is needed, is gone afterwards.

    The copy is in memory where that is free (Linux), which spares a disk gigabytes of writing, else in
    `scratch_parent`. With `vocabulary_only` it has no tensors and takes a few megabytes.
    llama.cpp offers nothing that does without: `done_getting_tensors` in llama-model-loader.cpp refuses a tensor that
    the architecture doesn't have, gguf.cpp a gap between tensors, so that neither can be left where it is, and
    `llama_model_init_from_user` makes up the optional tensors that a file lacks, such as a tied output.
    """
    if not needs_copy(header):
        yield header.path
        return
    with _scratch_file(0 if vocabulary_only else copy_bytes(header), scratch_parent) as path:
        _write_language_model(header, [] if vocabulary_only else language_tensors(header), path)
        yield path


@contextmanager
def _scratch_file(size: int, scratch_parent: Path) -> Iterator[Path]:
    if hasattr(os, "memfd_create") and psutil.virtual_memory().available > size + _SPARED_BYTES:
        # The kernel frees it with its last descriptor, even if this process is killed.
        descriptor = os.memfd_create("language.gguf")
        try:
            yield Path(f"/proc/self/fd/{descriptor}")
        finally:
            os.close(descriptor)
        return
    with tempfile.TemporaryDirectory(prefix=".check-", dir=scratch_parent) as scratch:
        yield Path(scratch) / "language.gguf"


def _write_language_model(header: GgufHeader, kept: list[TensorInfo], path: Path) -> None:
    fields = carried_fields(header, mended_fields(header, architecture_of(header).normalize(header)))
    plan = [PlannedTensor(tensor.name, tensor.dimensions, tensor.type_id) for tensor in kept]
    with TensorFile(header) as source, GgufWriter(path, fields, plan, header.alignment) as writer:
        for tensor in kept:
            for piece in source.raw(tensor):
                writer.write(tensor.name, piece)
