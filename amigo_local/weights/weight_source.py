"""Weights of a checkpoint, read a part at a time: from its safetensors, or from the GGUF it would come from."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Protocol

import msgspec
import numpy as np

from amigo_local.weights.architecture import architecture_of, map_tensors
from amigo_local.weights.gguf_header import GgufHeader
from amigo_local.weights.safetensors_file import read_checkpoint
from amigo_local.weights.tensor_rows import Rows, TensorFile
from amigo_local.weights.unpack import checkpoint_chunks


class RawTable(msgspec.Struct, frozen=True):
    """Where a matrix lies in its source as it is: `rows` rows of `columns` values in ggml's type `type_name`."""

    path: Path
    offset: int
    """In bytes from the start of the file."""
    nbytes: int
    type_name: str
    rows: int
    columns: int


class WeightSource(Protocol):
    """Float32 weights under the names and in the layout of a checkpoint."""

    @property
    def shapes(self) -> Mapping[str, tuple[int, ...]]: ...

    def tiles(self, name: str) -> Iterator[tuple[int, Rows]]:
        """(first row, rows) over the whole tensor, a chunk at a time; a vector is one row."""

    def row(self, name: str, index: int) -> Rows:
        """(row length,) of a tensor whose rows no architecture moves: an embedding."""


def read_whole(source: WeightSource, name: str) -> Rows:
    """One tensor in its own shape."""
    shape = source.shapes[name]
    result = np.empty(shape, np.float32)
    rows_of_result = result.reshape(-1, shape[-1])
    for start, rows in source.tiles(name):
        rows_of_result[start : start + len(rows)] = rows
    return result


class CheckpointWeights:
    """The safetensors of a checkpoint directory. Raises InputError when it holds no whole checkpoint."""

    def __init__(self, directory: Path) -> None:
        self._tensors = read_checkpoint(directory)
        self.shapes = {name: tensor.shape for name, tensor in self._tensors.items()}

    def tiles(self, name: str) -> Iterator[tuple[int, Rows]]:
        return self._tensors[name].chunks()

    def row(self, name: str, index: int) -> Rows:
        return self._tensors[name].rows(index, index + 1).reshape(-1)

    def raw_table(self, name: str) -> RawTable:
        tensor = self._tensors[name]
        return RawTable(tensor.path, tensor.offset, tensor.nbytes, tensor.dtype, *tensor.shape)


class GgufWeights:
    """A GGUF's language model as its checkpoint would hold it: rows un-permuted, norms without their offset."""

    def __init__(self, header: GgufHeader, *, allow_nonfinite: bool = False) -> None:
        """With `allow_nonfinite` tiles may hold NaN and infinity; else they raise InputError."""
        self._allow_nonfinite = allow_nonfinite
        family = architecture_of(header)
        self.header = family.normalize(header)
        self._tensors = {tensor.name: tensor for tensor in map_tensors(self.header, family)[0]}
        self.shapes = {name: tensor.source.shape for name, tensor in self._tensors.items()}

    def tiles(self, name: str) -> Iterator[tuple[int, Rows]]:
        start = 0
        with TensorFile(self.header, allow_nonfinite=self._allow_nonfinite) as file:
            for rows in checkpoint_chunks(file, self._tensors[name]):
                yield start, rows
                start += len(rows)

    def row(self, name: str, index: int) -> Rows:
        tensor = self._tensors[name]
        assert tensor.heads is None and not tensor.shift
        with TensorFile(self.header) as file:
            return file.rows(tensor.source, index, index + 1).reshape(-1)

    def raw_table(self, name: str) -> RawTable:
        """Of a matrix whose rows no architecture moves: the embedding and the head."""
        tensor = self._tensors[name]
        assert tensor.heads is None and not tensor.shift
        info = tensor.source
        return RawTable(self.header.files[info.file], info.offset, info.nbytes, info.type_name, *info.shape)
