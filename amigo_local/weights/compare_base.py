"""Whether a GGUF was made from a checkpoint: every tensor against its original, with the error that each shows."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Literal, NamedTuple

import msgspec
import numpy as np

from amigo_local.domain.errors import InputError
from amigo_local.domain.events import Emit, Progress
from amigo_local.weights.architecture import MappedTensor, architecture_of, map_tensors
from amigo_local.weights.base_candidates import MAX_EXTRA_ROWS
from amigo_local.weights.gguf_header import GgufHeader
from amigo_local.weights.kernels import Rows, load_kernels
from amigo_local.weights.quantization_grid import Residual, residual
from amigo_local.weights.rotary_order import to_gguf_rows
from amigo_local.weights.safetensors_file import StoredTensor
from amigo_local.weights.tensor_rows import Bytes, TensorFile

Verdict = Literal["identical", "fine-tuned", "another"]
"""identical: up to quantization."""

# Of the matrices' size. Unrelated ones measure 1.30 (Q2_K) to 1.41; tuning that is half as large as what it started
# from leaves little of it.
ANOTHER = 0.5
PROBED_ROWS = 4  # of each matrix: 100 KB for a layer of 12B, and 15,000 weights of a tensor tell enough
_CHUNK_ELEMENTS = 1 << 20  # 4 MiB of float32, of which a comparison holds eight at a time
# Gemma3ForConditionalGeneration before and after transformers 4.52: its language model's tensors, and the plain names.
_PREFIXES = (("language_model.", ""), ("model.language_model.", "model."))
_EMBEDDINGS = ("model.embed_tokens.weight", "lm_head.weight")
_COMPUTED = "rotary_emb.inv_freq"  # older checkpoints carry the table


class Pair(NamedTuple):
    """A tensor of the file and the one in the checkpoint that it would come from."""

    mapped: MappedTensor
    stored: StoredTensor

    @property
    def rows(self) -> int:
        """Of the file's tensor that the checkpoint has too; a vector is one row."""
        shape, other = self.mapped.source.shape, self.stored.shape
        return 1 if len(shape) == 1 else min(shape[0], other[0])


class TensorComparison(msgspec.Struct, frozen=True):
    """Errors are root mean squares relative to the original's."""

    name: str
    """In the checkpoint."""
    type: str
    elements: int
    error: float
    """Of the file against the checkpoint."""
    quantization: float
    """What of it the file's type makes unavoidable."""
    change: float
    """What is left: how far the weights had moved before they were quantized."""
    misplaced: float
    """Share of weights that aren't at the value nearest to the original."""
    changed: bool


class BaseComparison(msgspec.Struct, frozen=True):
    """`change` is that of all matrices together."""

    verdict: Verdict
    change: float
    tensors: tuple[TensorComparison, ...]

    @property
    def changed(self) -> list[TensorComparison]:
        """Those that moved, the most first."""
        return sorted((tensor for tensor in self.tensors if tensor.changed), key=lambda tensor: -tensor.change)

    @property
    def worst(self) -> TensorComparison:
        return max(self.tensors, key=lambda tensor: tensor.error)

    @property
    def mean_error(self) -> float:
        return math.fsum(tensor.error for tensor in self.tensors) / len(self.tensors)

    def most_changed_layers(self, count: int = 3) -> list[tuple[str, float]]:
        """(layer, or the tensor outside of them; its largest change), the most first."""
        layers: dict[str, float] = {}
        for tensor in self.changed:
            parts = tensor.name.split(".")
            layer = f"layer {parts[2]}" if parts[:2] == ["model", "layers"] else tensor.name
            layers[layer] = max(layers.get(layer, 0.0), tensor.change)
        return sorted(layers.items(), key=lambda item: -item[1])[:count]


def language_tensors(stored: Mapping[str, StoredTensor]) -> dict[str, StoredTensor]:
    """The language model of a checkpoint under plain names: a multimodal one has them behind a prefix."""
    plain: dict[str, StoredTensor] = {}
    for name, tensor in stored.items():
        old, new = next((pair for pair in _PREFIXES if name.startswith(pair[0])), ("", ""))
        plain[new + name.removeprefix(old)] = tensor
    return plain


def pair_tensors(header: GgufHeader, stored: Mapping[str, StoredTensor], label: str) -> list[Pair]:
    """Every tensor of the language model with its original. `label` names the checkpoint in messages.

    Raises InputError naming the first tensor that is missing, surplus or of another shape; embeddings may differ by
    a few rows.
    """
    family = architecture_of(header)
    mapped, _ = map_tensors(family.normalize(header), family)
    names = language_tensors(stored)
    pairs: list[Pair] = []
    for tensor in mapped:
        found = names.get(tensor.name)
        if found is None and tensor.name == "lm_head.weight":
            found = names.get("model.embed_tokens.weight")  # tied there, written out in the file
        shape = tensor.source.shape
        if found is None:
            raise _other_shape(header, label, f"has no {tensor.name}, which is {_text(shape)} in the file")
        if not _fits(tensor.name, shape, found.shape):
            raise _other_shape(
                header, label, f"{tensor.name} is {_text(found.shape)} there, {_text(shape)} in the file"
            )
        pairs.append(Pair(tensor, found))
    own = {tensor.name for tensor in mapped}
    surplus = [n for n in names if n.startswith("model.layers.") and n not in own and not n.endswith(_COMPUTED)]
    if surplus:
        raise _other_shape(header, label, f"has {surplus[0]}, which the file has not")
    return pairs


def _fits(name: str, ours: tuple[int, ...], theirs: tuple[int, ...]) -> bool:
    if name in _EMBEDDINGS and len(theirs) == 2:
        return ours[1:] == theirs[1:] and abs(ours[0] - theirs[0]) <= MAX_EXTRA_ROWS
    return ours == theirs


def _text(shape: tuple[int, ...]) -> str:
    return " × ".join(map(str, shape))


def _other_shape(header: GgufHeader, label: str, what: str) -> InputError:
    return InputError(
        f"{label} is another model than {header.path.name}: {what}",
        "amigo-local base REF lists the repositories that come into question",
    )


def probe(pairs: Iterable[Pair]) -> list[tuple[Pair, int]]:
    """(pair, how many rows from the top): vectors and a few rows of matrices of the first, middle and last layer.

    Query and key rows are left out where the file has them in another order: they would have to come by whole heads.
    """
    by_layer: dict[int, list[Pair]] = {}
    chosen: list[tuple[Pair, int]] = []
    for pair in pairs:
        parts = pair.mapped.name.split(".")
        if parts[:2] == ["model", "layers"] and not pair.mapped.heads:
            by_layer.setdefault(int(parts[2]), []).append(pair)
        elif parts[:2] == ["model", "norm"]:
            chosen.append((pair, 1))
    layers = sorted(by_layer)
    for layer in dict.fromkeys((layers[0], layers[len(layers) // 2], layers[-1]) if layers else ()):
        chosen += [(pair, min(PROBED_ROWS, pair.rows)) for pair in by_layer[layer]]
    return chosen


def compare(header: GgufHeader, parts: Iterable[tuple[Pair, int]], emit: Emit, label: str) -> BaseComparison:
    """Compares the first so many rows of each pair, a chunk at a time; `label` is what progress is called.

    Undoes the order of query and key rows and the offset of norms on the way. Whatever `emit` raises passes through.
    """
    chosen = list(parts)
    total = sum(_bytes(pair, rows) for pair, rows in chosen)
    done, tensors = 0, []
    sums: dict[bool, Residual] = {True: Residual(), False: Residual()}
    with TensorFile(header) as file:
        for pair, rows in chosen:
            measured = Residual()
            for part in _residuals(file, pair, rows):
                measured += part
                emit(
                    Progress(
                        label, done + _bytes(pair, rows) * measured.elements / _elements(pair, rows), total, "bytes"
                    )
                )
            done += _bytes(pair, rows)
            tensors.append(_judged(pair, measured))
            sums[len(pair.mapped.source.shape) > 1] += measured
    change = _change(sums[True] if sums[True].elements else sums[False])
    # Written so that NaN is another model.
    related = change < ANOTHER
    verdict: Verdict = "another"
    if related:
        verdict = "fine-tuned" if any(tensor.changed for tensor in tensors) else "identical"
    return BaseComparison(verdict, change, tuple(tensors))


def _elements(pair: Pair, rows: int) -> int:
    return rows * pair.mapped.source.dimensions[0]


def _bytes(pair: Pair, rows: int) -> int:
    kind = pair.mapped.source.type
    return _elements(pair, rows) // kind.block_size * kind.block_bytes


def _judged(pair: Pair, measured: Residual) -> TensorComparison:
    size = measured.original or math.nan  # an original of zeros: nothing to be relative to
    return TensorComparison(
        name=pair.mapped.name,
        type=pair.mapped.source.type_name,
        elements=measured.elements,
        error=math.sqrt(measured.found / size) if measured.found else 0.0,
        quantization=math.sqrt(max(measured.nearest, 0.0) / size) if measured.found else 0.0,
        change=_change(measured),
        misplaced=measured.misplaced / measured.elements,
        changed=not measured.is_explained,
    )


def _change(measured: Residual) -> float:
    moved = measured.found - measured.nearest
    if moved <= 0:
        return 0.0
    return math.sqrt(moved / measured.original) if measured.original else math.inf


def _residuals(file: TensorFile, pair: Pair, rows: int) -> Iterator[Residual]:
    source = pair.mapped.source
    kernels = load_kernels()
    for start, raw in _row_blocks(file, pair.mapped, rows):
        yield residual(kernels, source.type, raw, _original(pair, start, start + len(raw)))


def _row_blocks(file: TensorFile, mapped: MappedTensor, rows: int) -> Iterator[tuple[int, Bytes]]:
    """(first row, (rows, row bytes) uint8) of the first so many rows, in the file's order."""
    kind, length = mapped.source.type, mapped.source.dimensions[0]
    width = length // kind.block_size * kind.block_bytes
    step = max(1, _CHUNK_ELEMENTS // length)
    start = 0
    for piece in file.raw(mapped.source):
        whole = piece.reshape(-1, width)[: rows - start]
        for first in range(0, len(whole), step):
            yield start + first, whole[first : first + step]
        start += len(whole)
        if start >= rows:
            return


def _original(pair: Pair, start: int, stop: int) -> Rows:
    """The checkpoint's values of the file's rows [start, stop), as the converter would lay them out."""
    mapped, stored = pair
    shape = mapped.source.shape
    if mapped.heads and len(shape) == 1:  # a bias: each element belongs to a row
        rows = to_gguf_rows(stored.rows(0, 1).reshape(-1, 1), shape[0] // mapped.heads).reshape(1, -1)
    elif mapped.heads:
        head = shape[0] // mapped.heads
        first, last = start // head * head, -(-stop // head) * head
        rows = to_gguf_rows(stored.rows(first, last), head)[start - first : stop - first]
    else:
        rows = stored.rows(start, stop)
    return np.ascontiguousarray(rows + np.float32(mapped.shift) if mapped.shift else rows)
