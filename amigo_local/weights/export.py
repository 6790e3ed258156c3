"""Base plus adapter as one quantized GGUF, in one pass: each chunk decoded, changed, quantized and written."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from amigo_local.domain.artifact import Figure
from amigo_local.domain.errors import AmigoError, InputError
from amigo_local.domain.events import Emit, Note, Progress
from amigo_local.weights.architecture import MappedTensor
from amigo_local.weights.disk_space import partial_file
from amigo_local.weights.export_plan import ExportPlan
from amigo_local.weights.ggml_types import GGML_TYPES, TYPES_BY_NAME
from amigo_local.weights.gguf_writer import GgufWriter, PlannedTensor
from amigo_local.weights.grid_rounding import GridRounding
from amigo_local.weights.imatrix import ImportanceMatrix
from amigo_local.weights.kernels import Bytes, Kernels, Rows, load_kernels
from amigo_local.weights.rotary_order import to_gguf_rows
from amigo_local.weights.safetensors_file import StoredTensor
from amigo_local.weights.tensor_rows import F16_MAX, TensorFile, count_nonfinite, largest_finite, nonfinite_error
from amigo_local.weights.unpack import checkpoint_chunks
from amigo_local.weights.weight_change import WeightChange

_F16 = TYPES_BY_NAME["F16"].id
# GGML_ABORT in ggml-quants.c ends the process: a NaN is on none of their grids.
_ABORT_ON_NONFINITE = frozenset({"IQ2_XS", "IQ2_S", "IQ3_XXS", "IQ3_S"})


def export(
    plan: ExportPlan,
    out_file: Path,
    emit: Emit,
    *,
    imatrix: ImportanceMatrix | None = None,
    threads: int | None = None,
    allow_nonfinite: bool = False,
) -> dict[str, Figure]:
    """Writes `out_file`: the plan's donor with its tensors changed and quantized as planned.

    The base is read in place; a few chunks of 8 MiB are in memory, nothing but the result is on disk (OUT.partial,
    removed when the work fails). Nothing is rounded between the base's blocks and the new ones: decoding, LoRA and
    quantizing are in float32, and a tensor that keeps its type is rounded so that small changes survive. Metadata,
    tokenizer and chat template are the donor's byte for byte.
    Raises InputError for weights that are NaN or infinite (unless allowed) or that a type can't hold, AmigoError
    when the disk is full.
    """
    donor = plan.donor
    if out_file.exists() and any(out_file.samefile(path) for path in donor.files):
        raise InputError(f"{out_file}: is the base itself", "give another file to write to")
    total = sum(tensor.elements for tensor in donor.tensors)
    done = nonfinite = 0
    with (
        partial_file(out_file, plan.file_bytes) as partial,
        TensorFile(donor, allow_nonfinite=allow_nonfinite) as source,
        GgufWriter(partial, plan.fields, plan.tensors, donor.alignment) as writer,
    ):
        maker = _TensorMaker(plan, source, load_kernels(threads), imatrix, allow_nonfinite)
        for planned in plan.tensors:
            for data in maker.copy(planned) if planned.name in plan.copied else maker.make(planned):
                writer.write(planned.name, data)
                kind = GGML_TYPES[planned.type_id]
                done += data.nbytes // kind.block_bytes * kind.block_size
                emit(Progress("exporting", done, total, "weights"))
        nonfinite = sum(source.nonfinite.values()) + maker.nonfinite
    if nonfinite:
        emit(Note(f"{nonfinite} values are NaN or infinite and were taken as they are", "warning"))
    types = Counter(GGML_TYPES[tensor.type_id].name for tensor in plan.tensors)
    return {
        "file_bytes": plan.file_bytes,
        "quantization": plan.file_type,
        "tensors": len(plan.tensors),
        "tensor_types": ", ".join(f"{count} {name}" for name, count in sorted(types.items())),
        "merged_tensors": len(plan.changes),
        "copied_tensors": len(plan.copied),
        "grid_rounded_tensors": len(plan.on_grid),
        "carried_vision_tensors": len(plan.vision),
        "nonfinite_values": nonfinite,
    }


class _TensorMaker:
    """The bytes of one tensor after the other, in chunks of whole rows."""

    def __init__(
        self,
        plan: ExportPlan,
        source: TensorFile,
        kernels: Kernels,
        imatrix: ImportanceMatrix | None,
        allow_nonfinite: bool,
    ) -> None:
        self._plan, self._source, self._kernels = plan, source, kernels
        self._imatrix, self._allow_nonfinite = imatrix, allow_nonfinite
        self.nonfinite = 0
        """Values that came in with the adapter or a checkpoint; the donor's are counted by the source."""

    def copy(self, planned: PlannedTensor) -> Iterator[Bytes]:
        """The donor's bytes, looked at on the way: a damaged block would else be carried into every refinement."""
        tensor = self._plan.donor.tensor(planned.name)
        for piece in self._source.raw(tensor):
            if not self._kernels.is_valid(tensor.type_id, piece):
                for _ in self._source.chunks(tensor):  # counts what isn't finite, and refuses unless it is allowed
                    pass
            yield piece

    def make(self, planned: PlannedTensor) -> Iterator[Bytes]:
        name, type_id = planned.name, planned.type_id
        place = self._plan.places[name]
        weights = None
        if self._imatrix is not None and len(planned.dimensions) > 1 and GGML_TYPES[type_id].is_quantized:
            weights = self._imatrix.row_weights(name, planned.dimensions[0])
        rounding = None
        if name in self._plan.on_grid:
            rounding = GridRounding(self._kernels, GGML_TYPES[type_id], name)
        found = start = 0
        for rows in self._changed_rows(place, self._plan.changes.get(name)):
            count = count_nonfinite(rows)
            found += count
            if found and not self._allow_nonfinite:
                continue  # on to the end, to count them all
            if count and GGML_TYPES[type_id].name in _ABORT_ON_NONFINITE:
                raise _no_room_for_nonfinite(name, type_id, count)
            if type_id == _F16:
                _refuse_beyond_f16(place, rows)
            if rounding is not None and not count:
                rows = rounding.round(self._source.raw_rows(place.source, start, start + len(rows)), rows)
            start += len(rows)
            data = self._kernels.quantize(type_id, rows, weights)
            is_valid = self._kernels.is_valid(type_id, data)
            if count and is_valid:
                raise _no_room_for_nonfinite(name, type_id, count)
            if not count and not is_valid:
                kind = GGML_TYPES[type_id].name
                raise AmigoError(f"{name} can't be written as {kind}: a scale overflows", "export with --quant bf16")
            yield data
        if found and not self._allow_nonfinite:
            raise nonfinite_error(self._plan.donor.path, name, found)
        if found and name not in self._source.nonfinite:
            self.nonfinite += found

    def _changed_rows(self, place: MappedTensor, change: WeightChange | None) -> Iterator[Rows]:
        """Float32 rows with the change, in the GGUF's order and with its norm offset."""
        apply = change.load() if change else None
        start = 0
        head_dim = place.source.shape[0] // place.heads if place.heads else None
        is_vector = len(place.source.shape) == 1
        for rows in self._base_rows(place, head_dim, is_vector):
            if is_vector:
                rows = rows.reshape(-1, 1)
            if apply is not None:
                rows = apply(rows, slice(start, start + len(rows)))
            start += len(rows)
            if head_dim is not None:
                rows = to_gguf_rows(rows, head_dim)
            if place.shift:
                rows = rows + np.float32(place.shift)
            yield rows.reshape(1, -1) if is_vector else rows

    def _base_rows(self, place: MappedTensor, head_dim: int | None, is_vector: bool) -> Iterator[Rows]:
        if self._plan.checkpoint is None:
            return checkpoint_chunks(self._source, place)
        stored: StoredTensor = self._plan.checkpoint[place.name]
        return (rows for _, rows in stored.chunks(1 if is_vector or head_dim is None else head_dim))


def _refuse_beyond_f16(place: MappedTensor, rows: Rows) -> None:
    largest = largest_finite(rows)
    if largest > F16_MAX:
        raise InputError(
            f"{place.source.name} holds {largest:.6g}, float16 ends at {F16_MAX:.0f}", "export with --quant bf16"
        )


def _no_room_for_nonfinite(name: str, type_id: int, count: int) -> InputError:
    return InputError(
        f"{name} holds {count} values that are NaN or infinite, for which {GGML_TYPES[type_id].name} has no code",
        "export with --quant keep, q8_0 or bf16",
    )
