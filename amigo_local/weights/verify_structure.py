"""Proof that an exported GGUF is its donor but for what was to change: tensor table, bytes and metadata."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import msgspec
import numpy as np

from amigo_local.domain.artifact import Figure
from amigo_local.domain.errors import AmigoError
from amigo_local.domain.events import Emit, Progress
from amigo_local.weights.architecture import architecture_of
from amigo_local.weights.ggml_types import GGML_TYPES
from amigo_local.weights.gguf_header import GgufHeader, TensorInfo
from amigo_local.weights.tensor_rows import TensorFile

HINT = "export again; if it happens again, report it"
# What an export sets anew, the latter when it used an importance matrix; everything else is the donor's.
_OWN_KEYS = frozenset({"general.file_type", "general.quantization_version"})
_OWN_PREFIX = "quantize.imatrix."


class TensorChanges(msgspec.Struct, frozen=True):
    """What became of the donor's tensors."""

    identical: frozenset[str]
    """Same type and same bytes."""
    requantized: frozenset[str]
    """Same type, other bytes."""
    retyped: frozenset[str]
    changed_bytes: int
    """Bytes that differ, and all those of tensors that changed their type."""

    def figures(self) -> dict[str, Figure]:
        return {
            "identical_tensors": len(self.identical),
            "requantized_tensors": len(self.requantized),
            "retyped_tensors": len(self.retyped),
            "changed_bytes": self.changed_bytes,
        }


def check_metadata(donor: GgufHeader, exported: GgufHeader) -> dict[str, Figure]:
    """Every entry byte for byte. Raises AmigoError naming the first that differs."""
    own = {key for key in exported.raw_fields if key.startswith(_OWN_PREFIX)} | _OWN_KEYS
    with donor.path.open("rb") as donor_file, exported.path.open("rb") as exported_file:
        for key in sorted({*donor.raw_fields, *exported.raw_fields} - own):
            entries = []
            for file, header in ((donor_file, donor), (exported_file, exported)):
                start, end = header.raw_fields.get(key, (0, 0))
                file.seek(start)
                entries.append(file.read(end - start))
            if entries[0] != entries[1]:
                raise AmigoError(f"{exported.path}: {key} differs from {donor.path}", HINT)
    return {"metadata_keys": len(exported.raw_fields)}


def check_tensors(
    donor: GgufHeader, exported: GgufHeader, types: Mapping[str, int], verbatim: Collection[str], emit: Emit
) -> TensorChanges:
    """Names, shapes and types of all tensors, and the bytes of those that weren't to change.

    `types`: tensor name -> ggml type id, as planned. `verbatim`: tensors that must be the donor's byte for byte; those
    of a vision tower must be in any case. Raises AmigoError naming the first tensor that isn't as it should be.
    """
    _check_table(donor, exported, types)
    family = architecture_of(donor)
    places = {tensor.name: tensor for tensor in exported.tensors}
    identical: set[str] = set()
    requantized: set[str] = set()
    retyped: set[str] = set()
    changed = done = 0
    total = sum(tensor.nbytes for tensor in exported.tensors)
    with TensorFile(donor) as before, TensorFile(exported) as after:
        for tensor in donor.tensors:
            found = places[tensor.name]
            if found.type_id != tensor.type_id:
                differing, group = found.nbytes, retyped
            else:
                differing = _differing_bytes(before, tensor, after, found)
                group = requantized if differing else identical
            if differing and (tensor.name in verbatim or family.is_skipped(tensor.name)):
                raise AmigoError(
                    f"{exported.path}: tensor {tensor.name} should be that of {donor.path} byte for byte, "
                    f"{differing} of {found.nbytes} bytes differ",
                    HINT,
                )
            group.add(tensor.name)
            changed += differing
            done += found.nbytes
            emit(Progress("comparing with the base", done, total, "bytes"))
    return TensorChanges(frozenset(identical), frozenset(requantized), frozenset(retyped), changed)


def _check_table(donor: GgufHeader, exported: GgufHeader, types: Mapping[str, int]) -> None:
    expected = {tensor.name: (tensor.dimensions, types.get(tensor.name)) for tensor in donor.tensors}
    found = {tensor.name: (tensor.dimensions, tensor.type_id) for tensor in exported.tensors}
    if list(expected) != list(found) or expected != found:
        names = [*expected, *(name for name in found if name not in expected)]
        name = next((name for name in names if expected.get(name) != found.get(name)), names[0])
        raise AmigoError(
            f"{exported.path}: tensor {name} is {_shown(found.get(name))}, expected {_shown(expected.get(name))}", HINT
        )


def _shown(entry: tuple[tuple[int, ...], int | None] | None) -> str:
    if entry is None:
        return "not there"
    kind = GGML_TYPES.get(entry[1]) if entry[1] is not None else None
    return f"{kind.name if kind else f'of type {entry[1]}'} {list(entry[0])}"


def _differing_bytes(before: TensorFile, mine: TensorInfo, after: TensorFile, its: TensorInfo) -> int:
    pairs = zip(before.raw(mine), after.raw(its), strict=True)
    return sum(int(np.count_nonzero(one != other)) for one, other in pairs)
