"""A GGUF as llama.cpp can load it: the file itself, or a passing copy without vision and with mended metadata."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from amigo_local.weights.architecture import architecture_of, map_tensors
from amigo_local.weights.gguf_header import GgufHeader, TensorInfo, Value
from amigo_local.weights.gguf_writer import GgufWriter, carried_fields
from amigo_local.weights.tensor_rows import TensorFile


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
    return family.normalize(header) != header or bool(map_tensors(header, family)[1])


@contextmanager
def loadable(header: GgufHeader, scratch_parent: Path, *, vocabulary_only: bool = False) -> Iterator[Path]:
    """Yields the path to load; a copy, where one is needed, lies in `scratch_parent` and is removed afterwards.

    With `vocabulary_only` the copy has no tensors and takes a few megabytes.
    """
    if not needs_copy(header):
        yield header.path
        return
    normal = architecture_of(header).normalize(header)
    kept = [] if vocabulary_only else language_tensors(header)
    with tempfile.TemporaryDirectory(prefix=".check-", dir=scratch_parent) as scratch:
        path = Path(scratch) / "language.gguf"
        fields = carried_fields(header, mended_fields(header, normal))
        plan = [(tensor.name, tensor.dimensions) for tensor in kept]
        with TensorFile(header) as source, GgufWriter(path, fields, plan, header.alignment) as writer:
            for tensor in kept:
                writer.begin(tensor.name, tensor.type_id)
                for piece in source.raw(tensor):
                    writer.write(piece.tobytes())
                writer.finish()
        yield path
